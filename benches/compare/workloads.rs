//! What is pulled.

use std::path::Path;
use std::process::Command;

use ocivol::demo::push::Layer;
use ocivol::demo::tarball::{Header, Tarball, gzip, zstd};
use ocivol::oci::digest::Digest;

use crate::support::debian_registry::DebianRegistry;
use crate::support::noise;

/// An artifact in the registry, as `<name>:v1`.
pub struct Workload {
    pub name: String,
    pub description: String,
    /// An image, and not files.
    pub is_image: bool,
    /// Whether all but the last of its layers are those of `<name>:v0` as well, which is there already.
    pub has_base: bool,
    /// Digests of its layers.
    pub digests: Vec<Digest>,
}

/// The tag of what is there already.
pub const BASE: &str = "v0";
/// Files of the layer that is new, and bytes of each.
const NEW_FILES: u64 = 500;
const NEW_SIZE: usize = 40_000;

/// Weight files.
const WEIGHTS: usize = 4;
/// Files of the layer of small files.
const SMALL_FILES: usize = 100_000;
/// Bytes of files in one layer of the image, about.
const LAYER_SIZE: u64 = 200 * 1000 * 1000;

/// Bytes of each of them.
fn weight_size() -> usize {
    let mib = std::env::var("WEIGHT_MIB").map_or(512, |text| text.parse().expect("WEIGHT_MIB: a number"));
    mib << 20
}

impl Workload {
    /// Makes and pushes it.
    pub async fn push(name: &str, registry: &DebianRegistry) -> Self {
        let pusher = registry.pusher(name);
        if name == "model" {
            let layers = model();
            pusher.model("v1", &layers).await.expect("pushed");
            let digests = layers.iter().map(|layer| Digest::sha256(&layer.content)).collect();
            let bytes: usize = layers.iter().map(|layer| layer.content.len()).sum();
            let description =
                format!("A ModelPack model of {:.1} GB in seven raw layers.", bytes as f64 / 1e9);
            return Self { name: name.into(), description, is_image: false, has_base: false, digests };
        }
        let has_base = name == "shared";
        let is_weights = matches!(name, "tar" | "tar-gzip");
        let mut tars = match name {
            "many-small" => vec![small_files()],
            _ if is_weights => vec![weights()],
            _ => real_files(),
        };
        if has_base {
            tars.truncate(5);
            tars.push(new_files());
        }
        let diff_ids: Vec<Digest> = tars.iter().map(|tar| Digest::sha256(tar)).collect();
        let unpacked: usize = tars.iter().map(Vec::len).sum();
        let compress = match name {
            "tar" => |tar: &[u8]| Ok(tar.to_vec()),
            _ if name.ends_with("zstd") => zstd,
            _ => gzip,
        };
        let layers: Vec<Layer> =
            tars.into_iter().map(|tar| Layer::archive(compress(&tar).expect("memory"))).collect();
        pusher.image("v1", &layers, &diff_ids).await.expect("pushed");
        if has_base {
            let below = layers.len() - 1;
            pusher.image(BASE, &layers[..below], &diff_ids[..below]).await.expect("pushed");
        }
        let packed: usize = layers.iter().map(|layer| layer.content.len()).sum();
        let what = if name == "many-small" {
            format!("An image of one layer, gzip, {SMALL_FILES} files of 1 to 4 KB")
        } else if is_weights {
            let how = if name == "tar" { "not compressed" } else { "gzip" };
            format!("A model as an image of one layer, {how}, {WEIGHTS} weight files of bfloat16")
        } else if has_base {
            format!(
                "An image of {} layers of real files of /usr, of which all but one are here",
                layers.len()
            )
        } else {
            let compression = name.rsplit('-').next().unwrap_or_default();
            format!("An image of {} layers of real files of /usr, {compression}", layers.len())
        };
        Self {
            name: name.into(),
            description: format!(
                "{what}: {:.0} MB, {:.2} GB unpacked.",
                packed as f64 / 1e6,
                unpacked as f64 / 1e9
            ),
            is_image: true,
            has_base,
            digests: layers.iter().map(|layer| Digest::sha256(&layer.content)).collect(),
        }
    }
}

fn model() -> Vec<Layer> {
    let mut layers: Vec<Layer> = (0..WEIGHTS)
        .map(|number| {
            let path = format!("model-{:05}-of-{WEIGHTS:05}.safetensors", number + 1);
            Layer::model_file("weight", &path, noise(number as u64 + 1, weight_size()))
        })
        .collect();
    layers.push(Layer::model_file("weight.config", "config.json", "{}"));
    layers.push(Layer::model_file("weight.config", "tokenizer.json", noise(9, 2 << 20)));
    layers.push(Layer::model_file("doc", "README.md", "# model\n"));
    layers
}

/// Weights of bfloat16, of which gzip makes a seventh less: of each number, four bits of the exponent are the same.
fn weights() -> Vec<u8> {
    let file = |tar: Tarball, number: usize| {
        let mut content = noise(number as u64 + 21, weight_size());
        content.iter_mut().skip(1).step_by(2).for_each(|high| *high = 0x38 | (*high & 0x87));
        tar.file(format!("models/model-{number:05}.safetensors"), &content)
    };
    (0..WEIGHTS).fold(Tarball::new().directory("models"), file).finish()
}

/// Text, which compresses like text.
fn small_files() -> Vec<u8> {
    let words = noise(11, 8 << 20);
    let mut tar = Tarball::new();
    for number in 0..SMALL_FILES {
        if number % 500 == 0 {
            tar = tar.directory(format!("data/d{:04}", number / 500));
        }
        let length = 1000 + (number * 7919) % 3000;
        let start = (number * 641) % (words.len() - 4096);
        let content: Vec<u8> = words[start..start + length / 3]
            .iter()
            .flat_map(|byte| format!("{byte:02x} ").into_bytes())
            .collect();
        let name = format!("data/d{:04}/f{number:06}.txt", number / 500);
        let header = Header { size: content.len() as u64, ..Header::new(name, b'0') };
        tar = tar.entry(&header, &content);
    }
    tar.finish()
}

fn new_files() -> Vec<u8> {
    let file = |tar: Tarball, number: u64| tar.file(format!("opt/new/{number}"), &noise(number, NEW_SIZE));
    (0..NEW_FILES).fold(Tarball::new().directory("opt/new"), file).finish()
}

/// Up to six layers of what this machine has installed.
fn real_files() -> Vec<Vec<u8>> {
    let mut layers: Vec<(Vec<String>, u64)> = vec![(Vec::new(), 0)];
    let mut waiting = vec![Path::new("/usr").to_owned()];
    while let Some(directory) = waiting.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let Ok(found) = std::fs::symlink_metadata(&path) else { continue };
            if found.is_dir() {
                waiting.push(path);
            } else if found.len() < 80_000_000 && (found.is_file() || found.is_symlink()) {
                let (names, size) = layers.last_mut().expect("one");
                names.push(path.display().to_string());
                *size += found.len();
                if *size > LAYER_SIZE {
                    layers.push((Vec::new(), 0));
                }
            }
        }
        if layers.len() > 6 {
            layers.truncate(6);
            break;
        }
    }
    layers.retain(|(names, _)| !names.is_empty());
    layers.into_iter().map(|(names, _)| pack(&names)).collect()
}

fn pack(names: &[String]) -> Vec<u8> {
    let mut list = tempfile::NamedTempFile::new().expect("a file");
    std::io::Write::write_all(&mut list, names.join("\n").as_bytes()).expect("written");
    let tar = Command::new("tar")
        .args(["--format=posix", "-C", "/", "--no-recursion", "-cf", "-", "-T"])
        .arg(list.path())
        .output()
        .expect("tar starts");
    assert!(tar.status.success(), "{}", String::from_utf8_lossy(&tar.stderr));
    tar.stdout
}
