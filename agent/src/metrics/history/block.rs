//! Some buckets in few bytes: an hour's minutes, a day's hours.
//!
//! ```text
//! version │ slot, samples, which quantities │ mean − mean before, max − mean │ … │ slot, …
//! ```
//! All but version, slot and the set of quantities are LEB128 numbers in the quantity's unit, a
//! difference in zigzag. Beside a row a minute this takes two thirds of the space.

use std::collections::BTreeMap;

use super::bucket::{Bucket, Figure, QUANTITIES, Quantity};

/// Version of the form.
const VERSION: u8 = 1;

/// Bytes that are no block: from a damaged file, or another version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

/// The bytes of buckets, by slot of the block.
pub(super) fn encode(buckets: &BTreeMap<u8, Bucket>) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    let mut before = [0_u64; QUANTITIES];
    for (&slot, bucket) in buckets {
        bytes.push(slot);
        put(&mut bytes, bucket.samples.into());
        let known = Quantity::ALL.into_iter().enumerate();
        let known: Vec<_> = known
            .filter_map(|(number, quantity)| Some((number, quantity, bucket.get(quantity)?)))
            .collect();
        bytes.push(known.iter().map(|(number, ..)| 1 << number).sum());
        for (number, quantity, figure) in known {
            let mean = in_units(figure.mean, quantity);
            let max = in_units(figure.max, quantity).max(mean);
            put(&mut bytes, zigzag(mean.wrapping_sub(before[number])));
            put(&mut bytes, max - mean);
            before[number] = mean;
        }
    }
    bytes
}

/// The buckets of these bytes.
pub(super) fn decode(bytes: &[u8]) -> Result<BTreeMap<u8, Bucket>, Unreadable> {
    let (&version, mut rest) = bytes.split_first().ok_or(Unreadable)?;
    if version != VERSION {
        return Err(Unreadable);
    }
    let mut buckets = BTreeMap::new();
    let mut before = [0_u64; QUANTITIES];
    while !rest.is_empty() {
        let slot = take_byte(&mut rest)?;
        let samples = u32::try_from(take(&mut rest)?).map_err(|_| Unreadable)?;
        let known = take_byte(&mut rest)?;
        if known >> QUANTITIES != 0 {
            return Err(Unreadable);
        }
        let mut figures = [None; QUANTITIES];
        for (number, quantity) in Quantity::ALL.into_iter().enumerate() {
            if known & 1 << number == 0 {
                continue;
            }
            let mean = before[number].wrapping_add(unzigzag(take(&mut rest)?));
            let max = mean.checked_add(take(&mut rest)?).ok_or(Unreadable)?;
            before[number] = mean;
            figures[number] = Some(Figure {
                mean: mean as f64 * quantity.unit(),
                max: max as f64 * quantity.unit(),
            });
        }
        buckets.insert(slot, Bucket::new(samples, figures));
    }
    Ok(buckets)
}

/// What is no number, or negative, is 0.
fn in_units(value: f64, quantity: Quantity) -> u64 {
    (value / quantity.unit()).round() as u64
}

fn zigzag(difference: u64) -> u64 {
    let difference = difference as i64;
    ((difference << 1) ^ (difference >> 63)) as u64
}

fn unzigzag(number: u64) -> u64 {
    (number >> 1) ^ (number & 1).wrapping_neg()
}

fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take(bytes: &mut &[u8]) -> Result<u64, Unreadable> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = take_byte(bytes)?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Unreadable)
}

fn take_byte(bytes: &mut &[u8]) -> Result<u8, Unreadable> {
    let (&first, rest) = bytes.split_first().ok_or(Unreadable)?;
    *bytes = rest;
    Ok(first)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bucket() -> impl Strategy<Value = Bucket> {
        let value = prop::option::of(0.0..1e13_f64);
        prop::collection::vec(prop::array::uniform7(value), 1..4).prop_map(|samples| {
            let mut bucket = Bucket::default();
            for values in samples {
                bucket.merge(&Bucket::sample(values));
            }
            bucket
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_to_the_last_digit_kept(
            buckets in prop::collection::btree_map(0..60_u8, bucket(), 0..60)
        ) {
            let read = decode(&encode(&buckets)).unwrap();
            prop_assert_eq!(read.len(), buckets.len());
            for (slot, bucket) in &buckets {
                prop_assert_eq!(read[slot].samples, bucket.samples);
                for quantity in Quantity::ALL {
                    let (read, wrote) = (read[slot].get(quantity), bucket.get(quantity));
                    prop_assert_eq!(read.is_some(), wrote.is_some());
                    if let (Some(read), Some(wrote)) = (read, wrote) {
                        let near = |a: f64, b: f64| (a - b).abs() <= quantity.unit() + b * 1e-12;
                        prop_assert!(near(read.mean, wrote.mean) && near(read.max, wrote.max));
                    }
                }
            }
            prop_assert_eq!(encode(&read), encode(&decode(&encode(&read)).unwrap()));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = decode(&bytes);
            let mut ours = vec![VERSION];
            ours.extend(bytes);
            if let Ok(buckets) = decode(&ours) {
                prop_assert!(buckets.len() <= 256);
            }
        }
    }

    #[test]
    fn another_version_is_refused() {
        assert_eq!(decode(&[]), Err(Unreadable));
        assert_eq!(decode(&[VERSION + 1]), Err(Unreadable));
        assert_eq!(decode(&[VERSION, 3, 6, 0x80]), Err(Unreadable));
    }
}
