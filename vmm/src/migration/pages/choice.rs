//! Which codec pays, by what the link carries and what the codecs do with this content on this
//! core.

use std::time::Duration;

use super::block::Encoding;

/// What a core copies, in bytes a second: nothing that it sends goes faster.
const COPY_BYTES_PER_S: f64 = 4e9;

/// By how much a codec has to be faster than one that costs less: than none, which takes no time
/// from others at both sides, or LZ4 than Zstandard, which takes less of the link.
const GAIN: f64 = 1.1;

/// How much of what was compressed is remembered, in bytes: a few blocks, so that a probe that
/// finds other content than the last one turns the choice at once.
const MEMORY_BYTES: f64 = (256 << 10) as f64;

/// A block that takes this many times what is usual was not alone on its core.
const OUTLIER: f64 = 4.0;

/// A way to make blocks shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    /// LZ4.
    Lz4,
    /// Zstandard, level 1.
    Zstd,
}

impl Codec {
    pub fn encoding(self) -> Encoding {
        match self {
            Self::Lz4 => Encoding::Lz4,
            Self::Zstd => Encoding::Zstd,
        }
    }
}

/// What a codec did lately: sums in which the past fades.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Meter {
    input: f64,
    output: f64,
    seconds: f64,
}

impl Meter {
    /// A block of `input` bytes went as `output` bytes, after so long.
    pub fn record(&mut self, input: usize, output: usize, elapsed: Duration) {
        let (input, output) = (input as f64, output as f64);
        let mut seconds = elapsed.as_secs_f64().max(1e-9);
        if self.input > 0.0 {
            seconds = seconds.min(OUTLIER * input * self.seconds / self.input);
        }
        let keep = (1.0 - input / MEMORY_BYTES).max(0.0);
        self.input = self.input * keep + input;
        self.output = self.output * keep + output;
        self.seconds = self.seconds * keep + seconds;
    }

    /// Bytes of RAM a second over a link of `link` bytes a second: blocks are compressed while
    /// others are sent. 0 if nothing is known.
    fn effective(&self, link: f64) -> f64 {
        if self.input == 0.0 {
            return 0.0;
        }
        let speed = self.input / self.seconds;
        let ratio = self.input / self.output;
        speed.min(link * ratio)
    }
}

/// The codec that brings pages over a link of `link_bytes_per_s` fastest; `None` if none does so
/// by enough. Of two that are much alike Zstandard, which leaves more of the link to others.
pub(super) fn choose(link_bytes_per_s: u64, lz4: &Meter, zstd: &Meter) -> Option<Codec> {
    let link = link_bytes_per_s as f64;
    let (lz4, zstd) = (lz4.effective(link), zstd.effective(link));
    let (codec, effective) = if lz4 > zstd * GAIN {
        (Codec::Lz4, lz4)
    } else {
        (Codec::Zstd, zstd)
    };
    let plain = link.min(COPY_BYTES_PER_S);
    (effective > plain * GAIN).then_some(codec)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 64 << 10;

    fn after(blocks: usize, mut meter: Meter, mb_per_s: f64, ratio: f64) -> Meter {
        for _ in 0..blocks {
            let elapsed = Duration::from_secs_f64(BLOCK as f64 / (mb_per_s * 1e6));
            meter.record(BLOCK, (BLOCK as f64 / ratio) as usize, elapsed);
        }
        meter
    }

    fn meter(mb_per_s: f64, ratio: f64) -> Meter {
        after(1, Meter::default(), mb_per_s, ratio)
    }

    #[test]
    fn text_goes_by_what_the_link_carries() {
        let (lz4, zstd) = (meter(700.0, 1.9), meter(420.0, 3.0));
        let on = |mb_per_s: u64| choose(mb_per_s * 1_000_000, &lz4, &zstd);

        assert_eq!(on(12), Some(Codec::Zstd));
        assert_eq!(on(118), Some(Codec::Zstd));
        assert_eq!(on(300), Some(Codec::Lz4));
        assert_eq!(on(1_000), None);
        assert_eq!(on(5_000), None);
    }

    #[test]
    fn codecs_that_are_much_alike_leave_the_choice_to_the_link() {
        let (lz4, zstd) = (meter(360.0, 2.07), meter(230.0, 2.99));
        assert_eq!(choose(118_000_000, &lz4, &zstd), Some(Codec::Zstd));
        assert_eq!(choose(160_000_000, &lz4, &zstd), Some(Codec::Lz4));
    }

    #[test]
    fn content_that_a_core_compresses_faster_than_the_link_goes_by_lz4() {
        let (lz4, zstd) = (meter(2_500.0, 50.0), meter(900.0, 80.0));
        assert_eq!(choose(1_000_000_000, &lz4, &zstd), Some(Codec::Lz4));
    }

    #[test]
    fn content_that_hardly_shrinks_goes_as_it_is() {
        let (lz4, zstd) = (meter(3_000.0, 1.0), meter(1_000.0, 1.05));
        assert_eq!(choose(12_500_000, &lz4, &zstd), None);
        assert_eq!(choose(0, &lz4, &zstd), None);
    }

    #[test]
    fn nothing_known_is_nothing_chosen() {
        assert_eq!(
            choose(12_500_000, &Meter::default(), &Meter::default()),
            None
        );
    }

    #[test]
    fn one_probe_of_other_content_turns_the_choice() {
        let none = Meter::default();
        let random = after(50, none, 1_000.0, 1.0);
        assert_eq!(choose(118_000_000, &none, &random), None);

        let text = after(1, random, 420.0, 3.0);
        assert_eq!(choose(118_000_000, &none, &text), Some(Codec::Zstd));

        let random_again = after(10, text, 1_000.0, 1.0);
        assert_eq!(choose(118_000_000, &none, &random_again), None);
    }

    #[test]
    fn one_block_that_was_held_up_changes_nothing() {
        let none = Meter::default();
        let text = after(50, none, 420.0, 3.0);
        let held_up = after(1, text, 1.0, 3.0);
        assert_eq!(choose(12_500_000, &none, &held_up), Some(Codec::Zstd));
        assert_eq!(choose(118_000_000, &none, &held_up), Some(Codec::Zstd));
    }
}
