//! What a file that is not a kernel looks like, for the message that refuses it.

/// Magic numbers at the start of a file and what they mean to a person.
const MAGIC: &[(&[u8], &str)] = &[
    (b"\x1f\x8b", "gzip data (decompress it first)"),
    (b"\xfd7zXZ\0", "xz data (decompress it first)"),
    (b"\x28\xb5\x2f\xfd", "zstd data (decompress it first)"),
    (b"\x04\x22\x4d\x18", "lz4 data (decompress it first)"),
    (b"QFI\xfb", "a qcow2 disk image"),
    (b"KDMV", "a VMDK disk image"),
    (b"070701", "a cpio archive, such as an initial RAM disk"),
    (b"!<arch>\n", "an ar archive, such as a Debian package"),
    (b"#!", "a script"),
    (b"hsqs", "a squashfs file system"),
    (b"MZ", "a PE program without a Linux boot header"),
];

/// Describes a file by its first bytes; a few hundred are enough.
pub fn describe(head: &[u8]) -> &'static str {
    if head.starts_with(b"\x7fELF") {
        return describe_elf(head);
    }
    if let Some((_, name)) = MAGIC.iter().find(|(magic, _)| head.starts_with(magic)) {
        return name;
    }
    if head.get(510..512) == Some(&[0x55, 0xaa]) {
        return "a disk image or boot sector";
    }
    if head.iter().all(|&byte| byte == 0) {
        return "all zeroes";
    }
    if head
        .iter()
        .all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
    {
        return "text";
    }
    "unknown data"
}

/// Describes an ELF file that is no x86-64 executable (ELF gABI, `e_ident` and `e_machine`).
fn describe_elf(head: &[u8]) -> &'static str {
    match (head.get(4), head.get(5), head.get(18)) {
        (Some(1), ..) => "a 32-bit ELF file",
        (_, Some(2), _) => "a big-endian ELF file",
        (_, _, Some(183)) => "an ELF file for 64-bit Arm",
        (_, _, Some(243)) => "an ELF file for RISC-V",
        (_, _, Some(62)) => "an ELF file that is not an executable",
        _ => "an ELF file for another CPU",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn describe_common_mistakes_names_them() {
        assert!(describe(b"\x1f\x8b\x08").contains("gzip"));
        assert!(describe(b"QFI\xfb\0\0\0\x03").contains("qcow2"));
        assert_eq!(describe(&[0; 64]), "all zeroes");
        assert_eq!(describe(b"console=ttyS0\n"), "text");
        assert_eq!(describe(b"\x7fELF\x01\x01\x01"), "a 32-bit ELF file");
        let mut sector = vec![0xfa; 512];
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        assert!(describe(&sector).contains("disk image"));
    }
}
