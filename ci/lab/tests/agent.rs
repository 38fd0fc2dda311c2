//! The node agent on a Debian server, with a Debian guest, as somebody new to it uses it: only
//! `pindahd`, `pindah` and what the guest itself says.

#[path = "agent/first_guest.rs"]
mod first_guest;
#[path = "agent/site.rs"]
mod site;
