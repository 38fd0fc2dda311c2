//! Sizes for people.

/// `bytes` as disk makers and memory makers both would read it: `931.5 GiB`.
pub(crate) fn text(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.into_iter().find(|(_, shift)| bytes >= 1 << shift) {
        Some((unit, shift)) => format!("{:.1} {unit}", bytes as f64 / f64::from(2).powi(shift)),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_have_one_digit_after_the_point() {
        let texts = [1_000_204_886_016, 4 << 30, 1000, 1 << 40].map(super::text);
        assert_eq!(texts, ["931.5 GiB", "4.0 GiB", "1000 bytes", "1.0 TiB"]);
    }
}
