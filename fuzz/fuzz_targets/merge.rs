//! Any entries in any layers: the merge ends, and what it gives is a tree of safe names.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use ocivol::layer::checksum::Checksum;
use ocivol::layer::entries::Entries;
use ocivol::layer::format::Profile;
use ocivol::layer::index::{Entry, EntryKind, EntryMetadata, Place};
use ocivol::layer::merge::{Merge, Visit};
use ocivol::layer::name::Name;
use ocivol::layer::rename::Rename;

#[derive(Debug, Arbitrary)]
struct Case {
    image: bool,
    layers: Vec<Vec<Raw>>,
    strip: u8,
    prefix: Vec<u8>,
    keep: u8,
}

#[derive(Debug, Arbitrary)]
struct Raw {
    name: Vec<u8>,
    link: Vec<u8>,
    kind: u8,
}

/// Few letters, so that names meet.
fn small(bytes: &[u8]) -> Vec<u8> {
    let letters = b"ab/./..//c";
    bytes
        .iter()
        .take(64)
        .map(|byte| if *byte < 250 { letters[usize::from(*byte) % letters.len()] } else { *byte })
        .collect()
}

fn entry(raw: &Raw) -> Option<Entry> {
    let name = Name::parse(&small(&raw.name)).ok()?;
    let kind = match raw.kind % 8 {
        0 | 1 => EntryKind::Directory,
        2 => EntryKind::File { size: 1, checksum: Checksum::of(b"x"), place: Place::Named },
        3 => EntryKind::Symlink { target: small(&raw.link), place: Place::Shadowed },
        4 => EntryKind::HardLink { target: Name::parse(&small(&raw.link)).ok()? },
        5 => EntryKind::Whiteout,
        6 => EntryKind::Opaque,
        _ => EntryKind::Dropped,
    };
    Some(Entry { name, kind, metadata: EntryMetadata::default() })
}

fuzz_target!(|case: Case| {
    let entries = |layer: &Vec<Raw>| layer.iter().take(200).filter_map(entry).collect::<Vec<_>>();
    let layers: Vec<Entries> =
        case.layers.iter().take(8).map(|layer| Entries::of(&entries(layer)).expect("memory")).collect();
    let rename = Rename {
        strip: usize::from(case.strip % 3),
        prefix: Name::parse(&small(&case.prefix)).unwrap_or_default(),
        within: Name::default(),
    };
    let mut merge = Merge::new(if case.image { Profile::Image } else { Profile::Archive });
    for layer in &layers {
        if merge.apply(layer, Some(&rename)).is_err() {
            return;
        }
    }
    let check = || {
        let mut open: Vec<Name> = Vec::new();
        let mut leaves = Vec::new();
        let result: Result<(), ()> = merge.walk(&mut |visit| {
            match visit {
                Visit::Enter { path, .. } => open.push(path.clone()),
                Visit::Leave => drop(open.pop().expect("one was entered")),
                Visit::Leaf { path, at } => {
                    assert_eq!(Name::parse(path.as_bytes()).as_ref(), Ok(path));
                    let (parent, _) = path.split().expect("the root is a directory");
                    assert_eq!(open.last().expect("a directory").as_bytes(), parent);
                    assert!(matches!(
                        merge.entry(at).kind,
                        EntryKind::File { .. } | EntryKind::Symlink { .. }
                    ));
                    leaves.push(path.clone());
                }
            }
            Ok(())
        });
        assert!(result.is_ok() && open.is_empty());
        leaves
    };
    let all = check();
    let wanted = |path: &Name| path.as_bytes().len() % 2 == usize::from(case.keep % 2);
    merge.retain((), &mut |path, (), _| ((), wanted(path)));
    let mut kept = Vec::new();
    let _: Result<(), ()> = merge.walk(&mut |visit| {
        if let Visit::Leaf { path, .. } = visit {
            kept.push(path.clone());
        }
        Ok(())
    });
    assert_eq!(kept, all.into_iter().filter(|path| wanted(path)).collect::<Vec<_>>());
});
