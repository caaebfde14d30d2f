//! Several layers give what unpacking them one after the other gives: compared with a model in memory, and with
//! umoci. `OCIVOL_SEED` draws other stacks, `OCIVOL_STACKS` more of them.

use std::collections::{BTreeMap, HashSet};

use ocivol::demo::tarball;
use ocivol::demo::tarball::Tarball;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::support::layers::{Layers, umoci};
use crate::support::snapshot::{Snapshot, difference, snapshot};

/// One entry of a layer.
#[derive(Debug, Clone)]
enum Op {
    Directory(String, u32),
    File(String, String),
    Symlink(String, String),
    HardLink(String, String),
    Whiteout(String),
    Opaque(String),
}

fn tar(ops: &[Op]) -> Vec<u8> {
    let mut tar = Tarball::new();
    for (number, op) in ops.iter().enumerate() {
        let mtime = 1_000_000 + number as u64;
        tar = match op {
            Op::Directory(name, mode) => {
                let header = tarball::Header::new(format!("{name}/"), tarball::DIRECTORY);
                tar.entry(&tarball::Header { mode: *mode, mtime, ..header }, b"")
            }
            Op::File(name, content) => {
                let header = tarball::Header::new(name, tarball::FILE);
                tar.entry(
                    &tarball::Header { size: content.len() as u64, mtime, ..header },
                    content.as_bytes(),
                )
            }
            Op::Symlink(name, target) => tar.symlink(name, target),
            Op::HardLink(name, target) => tar.hard_link(name, target),
            Op::Whiteout(name) => {
                let (parent, part) = name
                    .rsplit_once('/')
                    .map_or((String::new(), name.as_str()), |(parent, part)| (format!("{parent}/"), part));
                tar.file(format!("{parent}.wh.{part}"), b"")
            }
            Op::Opaque(name) => tar.file(format!("{name}/.wh..wh..opq"), b""),
        };
    }
    tar.finish()
}

/// A file system in memory, on which layers are unpacked one after the other, as plainly as it can be written.
#[derive(Default, Clone)]
struct Model {
    nodes: BTreeMap<Vec<String>, ModelNode>,
    files: usize,
}

#[derive(Debug, Clone, PartialEq)]
enum ModelNode {
    Directory,
    File(usize, String),
    Symlink(usize, String),
}

impl Model {
    fn apply(&mut self, ops: &[Op]) -> Result<(), String> {
        let mut touched: HashSet<Vec<String>> = HashSet::new();
        for op in ops {
            let (Op::Directory(name, _)
            | Op::File(name, _)
            | Op::Symlink(name, _)
            | Op::HardLink(name, _)
            | Op::Whiteout(name)
            | Op::Opaque(name)) = op;
            let mut parts: Vec<String> = name.split('/').map(str::to_owned).collect();
            let last = if matches!(op, Op::Opaque(_)) { None } else { parts.pop() };
            let mut path = self.resolve(&parts)?;
            if let Op::Whiteout(_) | Op::Opaque(_) = op {
                path.extend(last.clone());
                self.hide(&path, last.is_none(), &touched);
                continue;
            }
            let link = match op {
                Op::HardLink(_, target) => {
                    let mut parts: Vec<String> = target.split('/').map(str::to_owned).collect();
                    let target_last = parts.pop().expect("a name");
                    let mut from = self.resolve(&parts)?;
                    from.push(target_last);
                    let mut replaced = path.clone();
                    replaced.extend(last.clone());
                    if from.starts_with(&replaced) {
                        return Err("it takes the place of what it links to".into());
                    }
                    match self.nodes.get(&from) {
                        None | Some(ModelNode::Directory) => return Err("nothing to link to".into()),
                        Some(found) => Some(found.clone()),
                    }
                }
                _ => None,
            };
            for length in 1..=path.len() {
                match self.nodes.entry(path[..length].to_vec()).or_insert(ModelNode::Directory) {
                    ModelNode::Directory => touched.insert(path[..length].to_vec()),
                    _ => return Err("a parent is no directory".into()),
                };
            }
            path.extend(last);
            touched.insert(path.clone());
            let keep =
                matches!(op, Op::Directory(..)) && self.nodes.get(&path) == Some(&ModelNode::Directory);
            if !keep {
                self.nodes.retain(|known, _| !known.starts_with(&path));
            }
            self.files += 1;
            let node = match op {
                Op::Directory(..) => ModelNode::Directory,
                Op::File(_, content) => ModelNode::File(self.files, content.clone()),
                Op::Symlink(_, target) => ModelNode::Symlink(self.files, target.clone()),
                _ => link.expect("a link"),
            };
            self.nodes.insert(path, node);
        }
        Ok(())
    }

    fn hide(&mut self, path: &[String], only_inside: bool, touched: &HashSet<Vec<String>>) {
        let hidden = |known: &Vec<String>| {
            known.starts_with(path) && !(only_inside && known.len() == path.len()) && !touched.contains(known)
        };
        if only_inside && self.nodes.get(path).is_some_and(|node| *node != ModelNode::Directory) {
            return;
        }
        self.nodes.retain(|known, _| !hidden(known));
    }

    fn resolve(&self, parts: &[String]) -> Result<Vec<String>, String> {
        let mut path: Vec<String> = Vec::new();
        let mut ahead: Vec<String> = parts.iter().rev().cloned().collect();
        let mut symlinks = 0;
        while let Some(part) = ahead.pop() {
            match part.as_str() {
                "" | "." => {}
                ".." => drop(path.pop()),
                _ => {
                    path.push(part);
                    if let Some(ModelNode::Symlink(_, target)) = self.nodes.get(&path) {
                        symlinks += 1;
                        if symlinks > 40 {
                            return Err("too many symlinks".into());
                        }
                        path.pop();
                        if target.starts_with('/') {
                            path.clear();
                        }
                        ahead.extend(target.split('/').rev().map(str::to_owned));
                    }
                }
            }
        }
        Ok(path)
    }

    /// Kind, content and group by name, as a snapshot has them.
    fn listing(&self) -> BTreeMap<String, (char, String, String)> {
        let mut groups: BTreeMap<usize, String> = BTreeMap::new();
        let mut listing = BTreeMap::from([(String::new(), ('d', String::new(), String::new()))]);
        let mut names: Vec<(String, &ModelNode)> =
            self.nodes.iter().map(|(path, node)| (path.join("/"), node)).collect();
        names.sort_by(|one, two| one.0.cmp(&two.0));
        for (name, node) in names {
            let mut group = |id: &usize| groups.entry(*id).or_insert_with(|| name.clone()).clone();
            let entry = match node {
                ModelNode::Directory => ('d', String::new(), name.clone()),
                ModelNode::File(id, content) => {
                    ('f', ocivol::oci::digest::Digest::sha256(content.as_bytes()).to_string(), group(id))
                }
                ModelNode::Symlink(id, target) => ('l', target.clone(), group(id)),
            };
            listing.insert(name, entry);
        }
        listing
    }
}

fn listing(snapshot: &Snapshot) -> BTreeMap<String, (char, String, String)> {
    let entry = |(name, node): (&String, &crate::support::snapshot::Node)| {
        (name.clone(), (node.kind, node.content.clone(), node.group.clone()))
    };
    snapshot.iter().map(entry).collect()
}

/// Compares one stack of layers; true when it is one that can be unpacked.
fn compare(layers: &Layers, stack: &[Vec<Op>]) -> Result<bool, String> {
    let blobs: Vec<Vec<u8>> = stack.iter().map(|ops| tar(ops)).collect();
    let mut model = Model::default();
    let modelled = stack.iter().try_for_each(|ops| model.apply(ops));
    let ours = layers.stack(&blobs);
    match (&ours, &modelled) {
        (Ok(_), Err(error)) => return Err(format!("the model refuses: {error}")),
        (Err(error), Ok(())) => return Err(format!("the model accepts, ocivol refuses: {error}")),
        _ => {}
    }
    let directory = tempfile::tempdir().expect("a directory");
    let theirs = umoci(&blobs, directory.path());
    let Ok(ours) = ours else {
        // umoci gets to the end of some stacks that are refused here: links that nothing is behind yet.
        return Ok(false);
    };
    let ours = snapshot(&ours);
    if listing(&ours) != model.listing() {
        return Err(format!("the model has {:?}, ocivol {:?}", model.listing(), listing(&ours)));
    }
    let theirs = match theirs {
        // umoci takes away what has the name of a hard link before it looks for the link's target, which may lead
        // through that name.
        Err(error) if error.contains(": link: no such file or directory") => return Ok(false),
        theirs => theirs.map_err(|error| format!("ocivol accepts, umoci refuses: {error}"))?,
    };
    match difference(&without_times(&ours), &without_times(&snapshot(&theirs)), "umoci") {
        Some(difference) => Err(difference),
        None => Ok(true),
    }
}

/// Without what umoci takes from the clock: times of directories in which it has created something later.
fn without_times(snapshot: &Snapshot) -> Snapshot {
    let mut snapshot = snapshot.clone();
    for node in snapshot.values_mut().filter(|node| node.kind == 'd') {
        node.mtime = (0, 0);
    }
    snapshot
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|parts| parts.join("/"))
}

fn op() -> impl Strategy<Value = Op> {
    let target = prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "..", "."]), 1..4);
    let target = (any::<bool>(), target)
        .prop_map(|(absolute, parts)| (if absolute { "/" } else { "" }).to_owned() + &parts.join("/"));
    prop_oneof![
        3 => (path(), prop::sample::select(vec![0o700, 0o755, 0o555])).prop_map(|(name, mode)| Op::Directory(name, mode)),
        4 => (path(), "[a-z]{0,3}").prop_map(|(name, content)| Op::File(name, content)),
        2 => (path(), target).prop_map(|(name, target)| Op::Symlink(name, target)),
        1 => (path(), path()).prop_map(|(name, target)| Op::HardLink(name, target)),
        2 => path().prop_map(Op::Whiteout),
        1 => path().prop_map(Op::Opaque),
    ]
}

#[test]
fn random_stacks_are_what_the_model_and_umoci_make_of_them() {
    let layers = Layers::new();
    let stacks = prop::collection::vec(prop::collection::vec(op(), 1..7), 1..5);
    // The same stacks each time, because umoci's errors are not ours; another seed, and more of them, when asked.
    let setting = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<usize>().ok());
    let seed = setting("OCIVOL_SEED").unwrap_or(1);
    let wanted = setting("OCIVOL_STACKS").unwrap_or(120);
    let bytes: Vec<u8> = seed.to_le_bytes().into_iter().cycle().take(32).collect();
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    // About two in five can be unpacked: stacks are drawn until enough of these were compared.
    let config = Config { cases: 20 * wanted as u32, failure_persistence: None, ..Config::default() };
    let accepted = std::cell::Cell::new(0);
    let result = TestRunner::new_with_rng(config, random).run(&stacks, |stack| {
        if accepted.get() < wanted {
            let good = compare(&layers, &stack).map_err(TestCaseError::fail)?;
            accepted.set(accepted.get() + usize::from(good));
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(accepted.get(), wanted, "seed {seed}");
}

fn file(name: &str, content: &str) -> Op {
    Op::File(name.into(), content.into())
}

fn directory(name: &str) -> Op {
    Op::Directory(name.into(), 0o750)
}

fn symlink(name: &str, target: &str) -> Op {
    Op::Symlink(name.into(), target.into())
}

/// What a stack gives, as `name kind content`, after comparing it with the model and with umoci.
fn listed(stack: &[Vec<Op>]) -> Vec<String> {
    let layers = Layers::new();
    assert_eq!(compare(&layers, stack), Ok(true));
    let blobs: Vec<Vec<u8>> = stack.iter().map(|ops| tar(ops)).collect();
    let root = layers.stack(&blobs).expect("a tree");
    let found = snapshot(&root);
    let describe = |(name, node): (&String, &crate::support::snapshot::Node)| match node.kind {
        'f' => format!("{name}={}", std::fs::read_to_string(root.join(name)).expect("text")),
        'l' => format!("{name}->{}", node.content),
        _ => format!("{name}/"),
    };
    found.iter().skip(1).map(describe).collect()
}

#[test]
fn an_implied_parent_follows_a_symlink_and_an_explicit_one_replaces_it() {
    let lower = vec![directory("usr/lib"), symlink("lib", "usr/lib"), file("lib/old", "1")];
    let implied = vec![file("lib/new", "2")];
    assert_eq!(
        listed(&[lower.clone(), implied]),
        ["lib->usr/lib", "usr/", "usr/lib/", "usr/lib/new=2", "usr/lib/old=1"]
    );
    let explicit = vec![directory("lib"), file("lib/new", "2")];
    assert_eq!(listed(&[lower, explicit]), ["lib/", "lib/new=2", "usr/", "usr/lib/", "usr/lib/old=1"]);
}

#[test]
fn an_explicit_parent_replaces_a_file_and_an_implied_one_is_refused() {
    let lower = vec![file("a", "1")];
    assert_eq!(listed(&[lower.clone(), vec![directory("a"), file("a/b", "2")]]), ["a/", "a/b=2"]);
    let layers = Layers::new();
    assert_eq!(compare(&layers, &[lower.clone(), vec![file("a/b", "2")]]), Ok(false));
    let error = layers.stack(&[tar(&lower), tar(&[file("a/b", "2")])]).expect_err("no directory");
    assert!(error.contains("\"a/b\"") && error.contains("not a directory"), "{error}");
}

#[test]
fn a_hard_link_to_a_lower_layers_file_is_that_file() {
    let link = Op::HardLink("b/link".into(), "a/file".into());
    assert_eq!(
        listed(&[vec![file("a/file", "1")], vec![link.clone()]]),
        ["a/", "a/file=1", "b/", "b/link=1"]
    );
    // It stays the old one when its first name gets another file.
    let later = vec![link, file("a/file", "2")];
    assert_eq!(listed(&[vec![file("a/file", "1")], later]), ["a/", "a/file=2", "b/", "b/link=1"]);
}

#[test]
fn whiteouts_act_where_a_symlinked_parent_leads() {
    let lower = vec![file("d/x", "1"), file("d/y", "1"), symlink("s", "/d")];
    assert_eq!(listed(&[lower.clone(), vec![Op::Whiteout("s/x".into())]]), ["d/", "d/y=1", "s->/d"]);
    assert_eq!(listed(&[lower, vec![Op::Opaque("s".into()), file("s/z", "2")]]), ["d/", "d/z=2", "s->/d"]);
}

#[test]
fn a_whiteout_does_not_hide_what_its_own_layer_has_whatever_the_order() {
    let lower = vec![file("a", "1"), file("d/old", "1")];
    for upper in
        [vec![file("a", "2"), Op::Whiteout("a".into())], vec![Op::Whiteout("a".into()), file("a", "2")]]
    {
        assert_eq!(listed(&[lower.clone(), upper]), ["a=2", "d/", "d/old=1"]);
    }
    for upper in [
        vec![file("d/new", "2"), Op::Opaque("d".into())],
        vec![Op::Opaque("d".into()), file("d/new", "2")],
        vec![file("d/new", "2"), Op::Whiteout("d".into())],
    ] {
        assert_eq!(listed(&[lower.clone(), upper]), ["a=1", "d/", "d/new=2"]);
    }
}

#[test]
fn a_directory_is_replaced_by_a_file_and_back() {
    let one = vec![file("a/b/c", "1")];
    let two = vec![file("a/b", "2")];
    let three = vec![directory("a/b"), file("a/b/d", "3")];
    assert_eq!(listed(&[one.clone(), two.clone()]), ["a/", "a/b=2"]);
    assert_eq!(listed(&[one, two, three]), ["a/", "a/b/", "a/b/d=3"]);
}

#[test]
fn one_hundred_and_twenty_seven_layers() {
    let stack: Vec<Vec<Op>> = (0..127)
        .map(|number: i32| {
            let mut ops =
                vec![file("last", &number.to_string()), file(&format!("d{}/f{number}", number % 5), "x")];
            if number % 7 == 6 {
                ops.push(Op::Whiteout(format!("d{}/f{}", (number - 3) % 5, number - 3)));
            }
            ops
        })
        .collect();
    let found = listed(&stack);
    assert!(found.contains(&"last=126".to_owned()));
    assert_eq!(found.len(), 127 - 18 + 5 + 1);
}

#[test]
fn names_that_are_not_utf8_and_metadata_come_through() {
    let layers = Layers::new();
    let odd = tarball::Header {
        mode: 0o640,
        uid: 1234,
        gid: 4321,
        mtime: 1,
        ..tarball::Header::new(b"\xff\xfe/\xe9", tarball::FILE)
    };
    let timed: [(&str, &[u8]); 2] = [("mtime", b"1234567890.123456789"), ("SCHILY.xattr.user.a", b"b")];
    let lower = Tarball::new().entry(&odd, b"").pax(&timed).file("timed", b"x").finish();
    let link =
        Tarball::new().hard_link(b"\xff\xfe/link", b"\xff\xfe/\xe9").pax(&timed).directory("d").finish();
    let blobs = [lower, link];
    let ours = snapshot(&layers.stack(&blobs).expect("a tree"));
    let directory = tempfile::tempdir().expect("a directory");
    let theirs = snapshot(&umoci(&blobs, directory.path()).expect("umoci"));
    if let Some(difference) = difference(&without_times(&ours), &without_times(&theirs), "umoci") {
        panic!("{difference}");
    }
    let odd = &ours["\\xff\\xfe/\\xe9"];
    assert_eq!((odd.mode, odd.owner, odd.mtime), (0o640, (1234, 4321), (1, 0)));
    assert_eq!(
        ours["\\xff\\xfe/link"].group,
        odd.group.replace("link", "\\xe9").replace("\\xff\\xfe/\\xe9", &odd.group)
    );
    assert_eq!(
        (ours["timed"].mtime, ours["d"].mtime),
        ((1_234_567_890, 123_456_789), (1_234_567_890, 123_456_789))
    );
    assert_eq!(ours["timed"].xattrs["user.a"], b"b");
}
