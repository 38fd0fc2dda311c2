//! Pages of zeroes, which snapshots and migrations leave out.

/// Whether `bytes` are all zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Folding whole cache lines lets the compiler use the widest registers there are.
    let (lines, rest) = bytes.as_chunks::<64>();
    lines
        .iter()
        .all(|line| line.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|&byte| byte == 0)
}
