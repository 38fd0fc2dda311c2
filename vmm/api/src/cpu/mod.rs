//! The features of a processor, as a set that can be compared with another host's and cut down to
//! what several hosts have.
//!
//! A feature is a bit of a CPUID answer (Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E).
//! With them go what a guest cannot do without once it has seen it: the processor's vendor, the
//! width of physical addresses, and where XSAVE puts its components.

mod names;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

/// CPUID leaf of XSAVE's components.
const XSAVE: u32 = 0xd;
/// First component with a place of its own.
const FIRST_COMPONENT: u32 = 2;

/// A register of a CPUID answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuidRegister {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

impl CpuidRegister {
    /// All of them, in the order of CPUID's answers.
    pub const ALL: [Self; 4] = [Self::Eax, Self::Ebx, Self::Ecx, Self::Edx];

    fn name(self) -> &'static str {
        match self {
            Self::Eax => "EAX",
            Self::Ebx => "EBX",
            Self::Ecx => "ECX",
            Self::Edx => "EDX",
        }
    }
}

/// What a guest may see of a processor, or what a host has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CpuFeatures {
    /// Vendor as CPUID spells it: `GenuineIntel`, `AuthenticAMD`.
    pub vendor: String,
    /// Width of a physical address, in bits.
    pub physical_address_bits: u8,
    /// The answers that hold features, by rising leaf and index. What is absent is all zeroes.
    pub leaves: Vec<CpuidLeaf>,
}

/// The features in one answer of CPUID; the rest of it is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CpuidLeaf {
    /// EAX of the question.
    pub leaf: u32,
    /// ECX of the question.
    #[serde(default)]
    pub index: u32,
    /// EAX of the answer.
    #[serde(default)]
    pub eax: u32,
    /// EBX of the answer.
    #[serde(default)]
    pub ebx: u32,
    /// ECX of the answer.
    #[serde(default)]
    pub ecx: u32,
    /// EDX of the answer.
    #[serde(default)]
    pub edx: u32,
}

impl CpuidLeaf {
    /// One register of it.
    pub fn register(&self, register: CpuidRegister) -> u32 {
        match register {
            CpuidRegister::Eax => self.eax,
            CpuidRegister::Ebx => self.ebx,
            CpuidRegister::Ecx => self.ecx,
            CpuidRegister::Edx => self.edx,
        }
    }

    /// The same, to be written.
    pub fn register_mut(&mut self, register: CpuidRegister) -> &mut u32 {
        match register {
            CpuidRegister::Eax => &mut self.eax,
            CpuidRegister::Ebx => &mut self.ebx,
            CpuidRegister::Ecx => &mut self.ecx,
            CpuidRegister::Edx => &mut self.edx,
        }
    }

    /// Whether it has no feature.
    pub fn is_empty(&self) -> bool {
        CpuidRegister::ALL.iter().all(|&r| self.register(r) == 0)
    }

    /// Whether it tells the place of a component of XSAVE.
    pub fn is_component(&self) -> bool {
        self.leaf == XSAVE && self.index >= FIRST_COMPONENT
    }
}

/// Whether each bit of this register says that something is there.
pub fn is_feature_register(leaf: u32, index: u32, register: CpuidRegister) -> bool {
    use CpuidRegister::{Eax, Ebx, Ecx, Edx};
    match (leaf, index) {
        (1 | 0x8000_0001, 0) => matches!(register, Ecx | Edx),
        (7, 0) => matches!(register, Ebx | Ecx | Edx),
        (7, 1) => matches!(register, Eax | Ebx | Edx),
        // XSAVE's components, those of users and those of the system.
        (XSAVE, 0) => matches!(register, Eax | Edx),
        (XSAVE, 1) => matches!(register, Eax | Ecx | Edx),
        (0x4000_0001, 0) => matches!(register, Eax | Edx),
        (7, 2) | (0x8000_0007, 0) => register == Edx,
        (0x8000_0008, 0) => register == Ebx,
        (0x8000_0021, 0) => register == Eax,
        _ => false,
    }
}

/// Two hosts between which nothing can move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VendorsDiffer(
    /// The one.
    pub String,
    /// The other.
    pub String,
);

impl std::fmt::Display for VendorsDiffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(one, other) = self;
        write!(
            f,
            "a running guest cannot move between processors of {one} and {other}"
        )
    }
}

impl std::error::Error for VendorsDiffer {}

impl CpuFeatures {
    /// The answer to one question; all zeroes if there is none.
    pub fn leaf(&self, leaf: u32, index: u32) -> CpuidLeaf {
        let mut leaves = self.leaves.iter();
        let found = leaves.find(|answer| (answer.leaf, answer.index) == (leaf, index));
        found.copied().unwrap_or(CpuidLeaf {
            leaf,
            index,
            ..CpuidLeaf::default()
        })
    }

    /// What both have: a guest that sees no more can run on either, and move between them.
    ///
    /// # Errors
    /// [`VendorsDiffer`].
    pub fn intersection(&self, other: &Self) -> Result<Self, VendorsDiffer> {
        if self.vendor != other.vendor {
            return Err(VendorsDiffer(self.vendor.clone(), other.vendor.clone()));
        }
        let mut leaves: Vec<_> = self
            .leaves
            .iter()
            .map(|ours| common(ours, &other.leaf(ours.leaf, ours.index)))
            .collect();
        // A component that has no common place is none.
        let gone = self
            .leaves
            .iter()
            .zip(&leaves)
            .filter(|(ours, left)| ours.is_component() && left.is_empty())
            .filter(|(ours, _)| ours.index < u64::BITS)
            .fold(0, |mask, (ours, _)| mask | 1_u64 << ours.index);
        for leaf in &mut leaves {
            if (leaf.leaf, leaf.index) == (XSAVE, 0) {
                leaf.eax &= !(gone as u32);
                leaf.edx &= !((gone >> 32) as u32);
            }
        }
        leaves.retain(|leaf| !leaf.is_empty());
        Ok(Self {
            vendor: self.vendor.clone(),
            physical_address_bits: self.physical_address_bits.min(other.physical_address_bits),
            leaves,
        })
    }

    /// Names of what `self` has and `other` lacks; empty if a guest that was shown `self` can run
    /// where there is `other`. Features without a name are told by their place.
    pub fn lacking_in(&self, other: &Self) -> Vec<String> {
        let mut lacking = Vec::new();
        if self.vendor != other.vendor {
            let (theirs, ours) = (&self.vendor, &other.vendor);
            lacking.push(format!("the vendor ({theirs}, this is {ours})"));
        }
        for ours in &self.leaves {
            let theirs = other.leaf(ours.leaf, ours.index);
            if ours.is_component() {
                if (ours.eax, ours.ebx) != (theirs.eax, theirs.ebx) {
                    let index = ours.index;
                    lacking.push(format!("the place of XSAVE component {index}"));
                }
                continue;
            }
            for register in CpuidRegister::ALL {
                if is_feature_register(ours.leaf, ours.index, register) {
                    let missing = ours.register(register) & !theirs.register(register);
                    let bits = (0..u32::BITS).filter(|bit| missing >> bit & 1 == 1);
                    lacking.extend(
                        bits.map(|bit| cpu_feature_name(ours.leaf, ours.index, register, bit)),
                    );
                }
            }
        }
        if self.physical_address_bits > other.physical_address_bits {
            let bits = self.physical_address_bits;
            lacking.push(format!("{bits} physical address bits"));
        }
        lacking
    }
}

fn common(ours: &CpuidLeaf, theirs: &CpuidLeaf) -> CpuidLeaf {
    let mut both = CpuidLeaf {
        leaf: ours.leaf,
        index: ours.index,
        ..CpuidLeaf::default()
    };
    if ours.is_component() {
        return if (ours.eax, ours.ebx) == (theirs.eax, theirs.ebx) {
            *ours
        } else {
            both
        };
    }
    for register in CpuidRegister::ALL {
        if is_feature_register(ours.leaf, ours.index, register) {
            *both.register_mut(register) = ours.register(register) & theirs.register(register);
        }
    }
    both
}

/// What a feature is called: as in Linux's `/proc/cpuinfo`, or by its place.
pub fn cpu_feature_name(leaf: u32, index: u32, register: CpuidRegister, bit: u32) -> String {
    names::of(leaf, index, register, bit).map_or_else(
        || format!("CPUID {leaf:#x}.{index} {} bit {bit}", register.name()),
        str::to_owned,
    )
}
