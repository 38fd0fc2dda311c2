//! The lab by hand.

use anyhow::Result;

fn main() -> Result<()> {
    pindah_lab::Artifacts::new()?.make_all()
}
