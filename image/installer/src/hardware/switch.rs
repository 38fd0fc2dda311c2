//! Where firmware has the switch for VT-x or SVM, by the machine's maker.

/// Part of the maker's name in DMI, in lower case, and the way to the switch.
const WAYS: [(&str, &str); 12] = [
    (
        "dell",
        "press F2 at start, System BIOS (old ones: CPU Information), Processor Settings, \
         Virtualization Technology: Enabled",
    ),
    (
        "hp",
        "press F9 at start (F10 on desktops), System Options (or Security), Processor Options, \
         Intel Virtualization Technology or AMD-V: Enabled",
    ),
    (
        "hewlett",
        "press F9 at start (F10 on desktops), System Options (or Security), Processor Options, \
         Intel Virtualization Technology or AMD-V: Enabled",
    ),
    (
        "supermicro",
        "press Del at start, Advanced, CPU Configuration, Intel Virtualization Technology or SVM \
         Mode: Enabled",
    ),
    (
        "lenovo",
        "press F1 at start, System Settings (desktops: Security or Advanced), Processors, Intel \
         Virtualization Technology or SVM: Enabled",
    ),
    (
        "fujitsu",
        "press F2 at start, Advanced, CPU Configuration, Intel Virtualization Technology or SVM: \
         Enabled",
    ),
    (
        "ibm",
        "press F1 at start, System Settings, Processors (old ones: Advanced Setup, CPU Options), \
         Intel Virtualization Technology: Enabled",
    ),
    (
        "asus",
        "press Del or F2 at start, Advanced (F7), CPU Configuration, Intel Virtualization \
         Technology or SVM Mode: Enabled",
    ),
    (
        "gigabyte",
        "press Del at start, Advanced CPU settings (or M.I.T., or Tweaker), Intel Virtualization \
         Technology or SVM Mode: Enabled",
    ),
    (
        "acer",
        "press F2 or Del at start, Advanced, CPU or Chipset Configuration, Intel Virtualization \
         Technology or SVM: Enabled",
    ),
    (
        "micro-star",
        "press Del at start, OC (or Overclocking), CPU Features, Intel Virtualization Tech or SVM \
         Mode: Enabled",
    ),
    (
        "intel",
        "press F2 at start, Advanced, Processor Configuration, Intel Virtualization Technology: \
         Enabled",
    ),
];

/// How it is switched on in a machine of `vendor`.
pub(super) fn how(vendor: &str) -> &'static str {
    let vendor = vendor.to_lowercase();
    let found = WAYS.iter().find(|(name, _)| vendor.starts_with(name));
    found.map_or(
        "enter the firmware's set-up at start (F2, Del, F1 or F10), and among the settings of the \
         processor set Intel Virtualization Technology, VT-x, AMD-V or SVM to Enabled",
        |(_, way)| way,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makers_are_known_by_what_their_firmware_calls_them() {
        for (vendor, key) in [
            ("Dell Inc.", "F2"),
            ("HP", "F9"),
            ("Hewlett-Packard", "F9"),
            ("HPE", "F9"),
            ("Supermicro", "Del"),
            ("LENOVO", "F1"),
            ("FUJITSU", "F2"),
            ("IBM", "F1"),
            ("ASUSTeK COMPUTER INC.", "Del or F2"),
            ("Gigabyte Technology Co., Ltd.", "Del"),
        ] {
            assert!(
                how(vendor).starts_with(&format!("press {key} ")),
                "{vendor}"
            );
        }
        assert!(how("To Be Filled By O.E.M.").starts_with("enter the firmware's set-up"));
        assert!(how("").starts_with("enter the firmware's set-up"));
    }
}
