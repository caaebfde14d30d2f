//! Any bytes as an index whose checksum is right: it is read, and written again as the same, or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ocivol::layer::checksum::Checksum;
use ocivol::layer::index;
use ocivol::layer::stream::ReadError;

fn read(bytes: &[u8], checksum: Checksum) -> Result<Vec<index::Entry>, ReadError> {
    index::Reader::new(bytes, checksum, index::ENTRY_LIMIT).collect()
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(entries) = read(bytes, Checksum::of(bytes)) else { return };
    let mut again = Vec::new();
    let mut writer = index::Writer::new(&mut again);
    for entry in &entries {
        writer.add(entry).expect("memory");
    }
    let checksum = writer.finish().expect("memory");
    assert_eq!(read(&again, checksum).expect("sound"), entries);
});
