//! How firmware puts the tables in place: QEMU's linker and loader commands, which SeaBIOS and
//! OVMF carry out (SeaBIOS `src/fw/romfile_loader.h`).

use super::{ALIGN, AcpiTables, Blob};

/// Size of a command in bytes.
const COMMAND_LEN: usize = 128;
/// Size of a file name in bytes, with the terminating zero.
const NAME_LEN: usize = 56;

const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;

/// Any RAM below 4 GiB.
const ZONE_HIGH: u8 = 1;
/// Where a system looks for the RSDP: 0xE0000 to 0xFFFFF.
const ZONE_FSEG: u8 = 2;
/// Alignment of the RSDP (section 5.2.5.1).
const RSDP_ALIGN: u32 = 16;

/// fw_cfg file that holds the RSDP.
const FILE_RSDP: &str = "etc/acpi/rsdp";
/// fw_cfg file that holds all other tables.
const FILE_TABLES: &str = "etc/acpi/tables";
/// fw_cfg file that holds the commands.
const FILE_SCRIPT: &str = "etc/table-loader";

impl AcpiTables {
    /// The fw_cfg files from which firmware makes the tables: name and content.
    pub fn fw_cfg_files(&self) -> [(&'static str, Vec<u8>); 3] {
        [
            (FILE_RSDP, self.rsdp.clone()),
            (FILE_TABLES, self.tables.clone()),
            (FILE_SCRIPT, self.script()),
        ]
    }

    fn script(&self) -> Vec<u8> {
        let mut script = Vec::new();
        for (name, align, zone) in [
            (FILE_TABLES, ALIGN as u32, ZONE_HIGH),
            (FILE_RSDP, RSDP_ALIGN, ZONE_FSEG),
        ] {
            let fields = [&file_name(name)[..], &align.to_le_bytes(), &[zone]];
            command(&mut script, ALLOCATE, &fields);
        }
        for pointer in &self.pointers {
            let fields = [
                &file_name(name_of(pointer.blob))[..],
                &file_name(FILE_TABLES),
                &(pointer.offset as u32).to_le_bytes(),
                &[pointer.size as u8],
            ];
            command(&mut script, ADD_POINTER, &fields);
        }
        for checksum in &self.checksums {
            let fields = [
                &file_name(name_of(checksum.blob))[..],
                &(checksum.offset as u32).to_le_bytes(),
                &(checksum.range.start as u32).to_le_bytes(),
                &(checksum.range.len() as u32).to_le_bytes(),
            ];
            command(&mut script, ADD_CHECKSUM, &fields);
        }
        script
    }
}

fn command(script: &mut Vec<u8>, number: u32, fields: &[&[u8]]) {
    let end = script.len() + COMMAND_LEN;
    script.extend(number.to_le_bytes());
    for field in fields {
        script.extend_from_slice(field);
    }
    script.resize(end, 0);
}

fn name_of(blob: Blob) -> &'static str {
    match blob {
        Blob::Rsdp => FILE_RSDP,
        Blob::Tables => FILE_TABLES,
    }
}

fn file_name(name: &str) -> [u8; NAME_LEN] {
    let mut field = [0; NAME_LEN];
    field[..name.len()].copy_from_slice(name.as_bytes());
    field
}
