//! What is counted: the input of each part is prepared by a process that is not counted.

use std::fs;
use std::hint::black_box;
use std::io::ErrorKind;
use std::path::Path;

use bytes::Bytes;
use ocivol::demo::tarball::{Tarball, gzip, zstd};
use ocivol::host::metric::Seconds;
use ocivol::layer::entries::Entries;
use ocivol::layer::format::{INDEX, Profile, Summary};
use ocivol::layer::merge::{Merge, Visit};
use ocivol::layout::artifact::Artifact;
use ocivol::layout::decide::plan;
use ocivol::layout::options::Options;
use ocivol::oci::digest::Digest;
use ocivol::oci::manifest::{Document, parse};
use ocivol::oci::media_type;
use ocivol::transfer::follower::Follower;
use ocivol::unpack::directory_memory::DirectoryMemory;
use ocivol::unpack::error::Error;
use ocivol::unpack::extract::Limits;
use ocivol::unpack::pipeline::Unpack;
use ocivol::unpack::space::Space;

use crate::noise::noise;

/// A part of ocivol.
pub struct Part {
    pub name: &'static str,
    /// Writes its input into a directory.
    pub prepare: fn(&Path),
    /// Does its work once.
    pub run: fn(&Path),
}

pub const PARTS: [Part; 6] = [
    Part { name: "hash", prepare: |to| write(to, &noise(1, 2 << 20)), run: hash },
    Part { name: "unpack-tar", prepare: |to| write(to, &archive()), run: unpack },
    Part { name: "unpack-gzip", prepare: |to| write(to, &gzip(&archive()).expect("memory")), run: unpack },
    Part { name: "unpack-zstd", prepare: |to| write(to, &zstd(&archive()).expect("memory")), run: unpack },
    Part { name: "merge", prepare: prepare_merge, run: merge },
    Part { name: "plan", prepare: |to| write(to, manifest().as_bytes()), run: read_and_plan },
];

/// Bytes that come from the network at once.
const PIECE: usize = 64 * 1024;
/// Small files of an archive, and those of one directory. There are no more directories than are open at a time while a layer is unpacked.
const FILES: usize = 4000;
const OF_A_DIRECTORY: usize = 1000;
/// Layers of the merge, and files of each.
const LAYERS: usize = 5;
const MERGED: usize = 4000;
/// Shards of the model that is planned.
const SHARDS: usize = 1000;

fn write(directory: &Path, content: &[u8]) {
    fs::write(directory.join("input"), content).expect("written");
}

fn read(directory: &Path) -> Bytes {
    fs::read(directory.join("input")).expect("read").into()
}

/// Small files as in a package, symlinks, and a large file; half of the bytes compress like text.
fn archive() -> Vec<u8> {
    let words = noise(2, 1 << 20);
    let text = |number: usize, length: usize| -> Vec<u8> {
        let start = number * 97 % (words.len() - length);
        words[start..start + length].iter().flat_map(|byte| format!("{byte:02x} ").into_bytes()).collect()
    };
    let mut tar = Tarball::new();
    for number in 0..FILES {
        let directory = format!("usr/lib/package-{}", number / OF_A_DIRECTORY);
        if number % OF_A_DIRECTORY == 0 {
            tar = tar.directory(&directory);
        }
        tar = tar.file(format!("{directory}/module_{number}.py"), &text(number, 100 + number % 700));
        if number % 20 == 0 {
            tar = tar.symlink(format!("{directory}/link_{number}"), format!("module_{number}.py"));
        }
    }
    tar.file("usr/lib/large.so", &noise(3, 4 << 20)).finish()
}

fn hash(input: &Path) {
    let bytes = read(input);
    let mut follower = Follower::hashing(Digest::sha256(b""), Seconds::default());
    for start in (0..bytes.len()).step_by(PIECE) {
        let piece = bytes.slice(start..bytes.len().min(start + PIECE));
        follower.take(piece).expect("nothing to unpack");
    }
    black_box(follower.digest());
}

/// Directories are opened once more at the end, for their times, by openat2(2), which valgrind 3.19 of Debian 12 does not know. Then
/// all but that was done.
fn unpack(input: &Path) {
    let to = tempfile::tempdir_in(input).expect("a directory");
    match unpack_into(to.path(), &read(input)) {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::Unsupported => {}
        result => drop(black_box(result.expect("sound"))),
    }
}

fn unpack_into(directory: &Path, bytes: &Bytes) -> Result<Summary, Error> {
    let limits = Limits { bytes: 1 << 30, space: Space::ALL, directories: DirectoryMemory::Own };
    let mut unpack = Unpack::start(directory, Profile::Image, limits, None).expect("started");
    for start in (0..bytes.len()).step_by(PIECE) {
        let piece = bytes.slice(start..bytes.len().min(start + PIECE));
        assert_eq!(unpack.push(piece).expect("sound"), None);
    }
    unpack.finish()
}

/// The indexes of layers that have most of their directories in common, and that replace and hide some of each other's files.
fn prepare_merge(to: &Path) {
    let sums: Vec<String> = (0..LAYERS)
        .map(|layer| {
            let mut tar = Tarball::new();
            for number in 0..MERGED {
                let directory = format!("usr/share/d{}/e{}", number / 200, number / 20);
                // Each layer has a tenth of what the one below it has.
                let name = number + layer * MERGED * 9 / 10;
                tar = tar.file(format!("{directory}/file_{name}"), b"x");
                if layer > 0 && number % 100 == 0 {
                    tar = tar.file(format!("{directory}/.wh.file_{}", name - MERGED * 9 / 10 + 1), b"");
                }
            }
            let directory = to.join(format!("layer-{layer}"));
            fs::create_dir(&directory).expect("a directory");
            let summary = unpack_into(&directory, &Bytes::from(tar.finish())).expect("sound");
            fs::rename(directory.join(INDEX), to.join(format!("index-{layer}"))).expect("an index");
            fs::remove_dir_all(&directory).expect("removed");
            serde_json::to_string(&summary).expect("a summary")
        })
        .collect();
    write(to, sums.join("\n").as_bytes());
}

fn merge(input: &Path) {
    let sums = read(input);
    let sums = std::str::from_utf8(&sums).expect("text").lines();
    let layers: Vec<Entries> = sums
        .enumerate()
        .map(|(layer, sum)| {
            let summary: Summary = serde_json::from_str(sum).expect("a summary");
            let index = fs::read(input.join(format!("index-{layer}"))).expect("an index");
            Entries::read(index.as_slice(), summary.index, summary.entries, index.len() as u64)
                .expect("sound")
        })
        .collect();
    let mut merge = Merge::new(Profile::Image);
    for entries in &layers {
        merge.apply(entries, None).expect("applied");
    }
    let mut leaves = 0;
    let _: Result<(), ()> = merge.walk(&mut |visit| {
        leaves += usize::from(matches!(visit, Visit::Leaf { .. }));
        Ok(())
    });
    assert!(leaves > MERGED * 4, "{leaves} files");
}

/// A model of very many files.
fn manifest() -> String {
    let layer = |number: usize| {
        let digest = Digest::sha256(number.to_string().as_bytes()).to_string();
        let path = format!("weights/model-{number:05}-of-{SHARDS:05}.safetensors");
        serde_json::json!({
            "mediaType": "application/vnd.cncf.model.weight.v1.raw", "digest": digest, "size": 5_000_000_000_u64,
            "annotations": {"org.cncf.model.filepath": path},
        })
    };
    serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "artifactType": "application/vnd.cncf.model.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.cncf.model.config.v1+json",
            "digest": Digest::sha256(b"{}").to_string(), "size": 2,
        },
        "layers": (0..SHARDS).map(layer).collect::<Vec<_>>(),
    })
    .to_string()
}

fn read_and_plan(input: &Path) {
    let bytes = read(input);
    let digest = Digest::sha256(&bytes);
    let Document::Manifest(manifest) = parse(&bytes, None).expect("a manifest") else { panic!("an index") };
    let artifact = Artifact { manifest: &manifest, digest: &digest, size: bytes.len() as u64, config: None };
    let plan = plan(&artifact, &Options::default()).expect("a plan");
    assert_eq!(plan.items().len(), SHARDS);
}
