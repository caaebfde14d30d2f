//! Layers made to do harm by what they are: bombs, broken and ambiguous archives, broken promises, more than there is room
//! for.

use std::fs;

use bytes::Bytes;
use ocivol::demo::push::Layer;
use ocivol::demo::tarball;
use ocivol::demo::tarball::{FILE, Header, Tarball, gzip, zstd};
use ocivol::layer::format::Profile;
use ocivol::oci::digest::Digest;
use ocivol::unpack::pipeline::Unpack;
use tonic::Code;

use crate::support::attack::{Attack, attack, attack_with, one};
use crate::support::layers::{LIMITS, Layers};
use crate::support::raw::{Raw as _, block};
use crate::support::{Node, Scripted, isolated};

#[test]
fn t14_decompression_bombs_end_early() {
    attack(async |mut attack| {
        let same = vec![b'x'; 64 << 20];
        let header = Header { size: 1 << 30, ..Header::new("same", FILE) };
        let (start, member) = (block(&header), gzip(&same).expect("gzip"));
        let mut bomb = gzip(&start).expect("gzip");
        for _ in 0..16 {
            bomb.extend_from_slice(&member);
        }
        bomb.extend_from_slice(&gzip(&[0; 1024]).expect("gzip"));
        attack.refuse_image(&[bomb], &["200 times its size"]).await;

        let (start, frame) = (zstd(&start).expect("zstd"), zstd(&same).expect("zstd"));
        let mut bomb = start;
        for _ in 0..16 {
            bomb.extend_from_slice(&frame);
        }
        attack.refuse_image(&[bomb], &["200 times its size"]).await;

        // 2 GiB of window (zstd --long=31): the header alone is enough.
        let window = [0x28, 0xb5, 0x2f, 0xfd, 0, (31 - 10) << 3, 1, 0, 0];
        attack.refuse_image(&[window.to_vec()], &["a window of 2048 MiB"]).await;
        // A single segment of 4 GiB.
        let segment = [&[0x28, 0xb5, 0x2f, 0xfd, 0xa0][..], &u32::MAX.to_le_bytes(), &[1, 0, 0]].concat();
        attack.refuse_image(&[segment], &["a window of 4095 MiB"]).await;

        let status = fs::read_to_string(format!("/proc/{}/status", attack.node.pid())).expect("it runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
        assert!(peak < 128 * 1024, "{peak} kB");
    });
}

#[test]
fn t15_one_reading_of_what_comes_after_the_end() {
    let tar = one("x");
    let half = tar.len() / 2;
    let zeros = vec![0_u8; 5000];
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"skip"].concat();
    let (gz, zs) = (gzip(&tar).expect("gzip"), zstd(&tar).expect("zstd"));
    let [gz1, gz2] = [&tar[..half], &tar[half..]].map(|part| gzip(part).expect("gzip"));
    let [zs1, zs2] = [&tar[..half], &tar[half..]].map(|part| zstd(part).expect("zstd"));
    let good = [
        [&gz1[..], &gz2].concat(),
        [&gz[..], &zeros].concat(),
        [&gz[..], &gzip(&zeros).expect("gzip")].concat(),
        [&zs1[..], &zs2].concat(),
        [&skippable[..], &zs1, &skippable, &zs2, &skippable].concat(),
        [&tar[..], &zeros].concat(),
        Tarball::new().file("before", b"1").file("x", b"2").unfinished(),
        gz.clone(),
    ];
    let layers = Layers::new();
    for (number, blob) in good.iter().enumerate() {
        let tree =
            layers.stack(std::slice::from_ref(blob)).unwrap_or_else(|error| panic!("{number}: {error}"));
        assert_eq!(fs::read(tree.join("x")).expect("a file"), b"2", "{number}");
    }
    let bad = [
        ([&gz[..], b"x"].concat(), "compress"),
        ([&gz[..], &zeros, b"x"].concat(), "something else"),
        ([&zs[..], b"xyz"].concat(), "ends too early"),
        ([&zs[..], b"xyzw"].concat(), "something else"),
        (gz[..gz.len() - 1].to_vec(), "ends too early"),
        (zs[..zs.len() - 1].to_vec(), "ends too early"),
        ([&gz[..], &zs].concat(), "gzip"),
        ([&tar[..], &tar].concat(), "after the end"),
        ([&tar[..], b"x"].concat(), "after the end"),
        ([&gz[..], &gz].concat(), "after the end"),
        (tar[..512].to_vec(), "ends within"),
        (b"BZh91AY".to_vec(), "bzip2"),
        (b"\xfd7zXZ\0\0".to_vec(), "xz"),
    ];
    for (blob, word) in &bad {
        let error = layers.stack(std::slice::from_ref(blob)).expect_err(word);
        assert!(error.contains(word), "no {word:?} in {error}");
    }
}

#[test]
fn t16_diff_ids_are_checked_where_that_is_wanted() {
    attack_with(&["--verify-diff-ids"], async |mut attack| {
        let tar = one("x");
        let (layer, right, wrong) =
            (Layer::archive(gzip(&tar).expect("gzip")), Digest::sha256(&tar), Digest::sha256(b"other"));
        let mut publish = async |diff_ids: &[Digest]| {
            attack.number += 1;
            let repository = format!("hostile/{}", attack.number);
            let pusher = attack.registry.pusher(&repository);
            pusher.image("v1", std::slice::from_ref(&layer), diff_ids).await.expect("pushed");
            attack.publish(&repository, &[]).await
        };
        for (diff_ids, words) in [
            (vec![wrong.clone()], "uncompressed content"),
            (vec![], "0 diff IDs"),
            (vec![right.clone(); 2], "2 diff IDs"),
        ] {
            let status = publish(&diff_ids).await.expect_err(words);
            assert_eq!(status.code(), Code::FailedPrecondition);
            assert!(status.message().contains(words), "{}", status.message());
        }
        publish(std::slice::from_ref(&right)).await.expect("published");
        // What is here already is known to be something else than is promised now.
        let status = publish(&[wrong]).await.expect_err("another promise");
        assert!(status.message().contains(&right.to_string()), "{}", status.message());
    });
    attack(async |mut attack| {
        let target = attack.image(&[gzip(&one("x")).expect("gzip")]).await.expect("not wanted, not checked");
        assert!(target.join("x").exists());
        // Once it is wanted, what was not checked counts for nothing.
        attack.node.stop().await;
        attack.node.env.insert("OCIVOL_VERIFY_DIFF_IDS".into(), "true".into());
        attack.node.run().await;
        let (node, repository) = (&attack.node, format!("hostile/{}:v1", attack.number));
        let reference = attack.registry.reference(&repository);
        for policy in ["IfNotPresent", "Always"] {
            let status = node.publish(&node.volume("late"), &reference, &[("pullPolicy", policy)]).await;
            let status = status.expect_err("the diff ID is that of the compressed layer");
            assert_eq!(status.code(), Code::FailedPrecondition, "{}", status.message());
        }
    });
}

#[test]
fn t42_a_disk_that_is_full_stays_usable() {
    isolated(async {
        let registry = Scripted::start().await;
        let mut node = Node::prepare(&["--plain-http", &registry.host()]);
        node.limit_store("64m");
        node.run().await;
        let push = async |name: &str, megabytes: usize| {
            let tar = Tarball::new().file("big", &crate::support::noise(7, megabytes << 20)).finish();
            let blob = zstd(&tar).expect("zstd");
            let pusher = registry.pusher(name);
            pusher.image("v1", &[Layer::archive(blob)], &[Digest::sha256(&tar)]).await.expect("pushed");
            registry.reference(&format!("{name}:v1"))
        };
        let small = push("small", 1).await;
        let (first, big) = (node.volume("first"), push("big", 80).await);
        node.publish(&first, &small, &[]).await.expect("published");
        let status = node.publish(&node.volume("big"), &big, &[]).await.expect_err("it does not fit");
        assert_eq!(status.code(), Code::ResourceExhausted, "{}", status.message());
        // Its blob fits, what is in it does not: seen while it is unpacked.
        // Of 64 MiB, 3.2 MiB are for others: 62 would fit.
        for megabytes in [62, 100] {
            let tar = Tarball::new().file("same", &vec![b'x'; megabytes << 20]).finish();
            let blob = Layer::archive(gzip(&tar).expect("gzip"));
            let name = format!("same-{megabytes}");
            registry.pusher(&name).image("v1", &[blob], &[Digest::sha256(&tar)]).await.expect("pushed");
            let same = registry.reference(&format!("{name}:v1"));
            let status = node.publish(&node.volume(&name), &same, &[]).await.expect_err("it does not fit");
            assert_eq!(status.code(), Code::ResourceExhausted, "{}", status.message());
            assert!(status.message().contains("no space left on the node"), "{}", status.message());
        }
        let free = rustix::fs::statvfs(&node.root).expect("a disk");
        assert!(free.f_bavail * free.f_frsize > (64 << 20) * 9 / 10, "what did not fit was not removed");
        let second = node.volume("second");
        node.publish(&second, &small, &[]).await.expect("others work");
        assert_eq!(fs::metadata(first.target.join("big")).expect("a file").len(), 1 << 20);
    });
}

#[test]
fn t43_inodes_are_left_for_others() {
    isolated(async {
        let registry = Scripted::start().await;
        let mut node = Node::prepare(&["--plain-http", &registry.host()]);
        // A fiftieth of them, 414, is for others: 20,480 would fit.
        node.limit_store("256m,nr_inodes=20700");
        node.run().await;
        let files = |count: usize| {
            let tar = (0..count).fold(Tarball::new(), |tar, number| tar.file(number.to_string(), b""));
            gzip(&tar.finish()).expect("gzip")
        };
        for (count, fits) in [(20_480, false), (16_000, true)] {
            let name = format!("files-{count}");
            registry.pusher(&name).image("v1", &[Layer::archive(files(count))], &[]).await.expect("pushed");
            let volume = node.volume(&name);
            let result = node.publish(&volume, &registry.reference(&format!("{name}:v1")), &[]).await;
            if fits {
                result.expect("published");
                assert_eq!(fs::read_dir(&volume.target).expect("a directory").count(), count);
                continue;
            }
            let status = result.expect_err("too many");
            assert_eq!(status.code(), Code::ResourceExhausted, "{}", status.message());
            let told = status.message();
            assert!(told.contains("no space left on the node"), "{told}");
            let free = rustix::fs::statvfs(&node.root).expect("a disk");
            assert!(free.f_ffree > 20_000, "what did not fit was not removed");
        }
    });
}

#[test]
fn t43_entries_and_depth_are_bounded() {
    attack(async |mut attack| {
        let deep = "d/".repeat(4000);
        attack.refuse_image(&[Tarball::new().directory(&deep).finish()], &["longer than 3072 bytes"]).await;
        let deep = "d/".repeat(200);
        attack.refuse_image(&[Tarball::new().directory(&deep).finish()], &["deeper than 128"]).await;
        // Many symlinks lead deeper than any name says.
        let mut tar = Tarball::new();
        for number in 0..4 {
            let below = if number == 0 { String::new() } else { format!("s{}/", number - 1) };
            tar = tar.symlink(format!("s{number}"), format!("{below}{}", "x/".repeat(60)));
        }
        attack.refuse_image(&[tar.file("s3/f", b"x").finish()], &["s3/f", "too deep"]).await;
    });
    // Very many of the same.
    let directory = tempfile::tempdir().expect("a directory");
    let mut unpack = Unpack::start(directory.path(), Profile::Image, LIMITS, None).expect("space");
    let blocks = Bytes::from(block(&Header::new("d", tarball::DIRECTORY)).repeat(1000));
    let error = (0..=1010).find_map(|_| unpack.push(blocks.clone()).err()).or_else(|| unpack.finish().err());
    let error = error.expect("it was unpacked").to_string();
    assert!(error.contains("1000000 files and directories"), "{error}");
}

#[test]
fn regression_t43_a_merge_that_needs_more_memory_than_its_layers_say_is_begun_again() {
    attack(async |mut attack| {
        // Each time the directory has become a file, what is below it is made anew in the tree; on the disk it is there already, so
        // nothing says beforehand how much that is. It is merged again, with as much memory as there may be.
        let deep = "d/".to_owned() + &"1/".repeat(100);
        let mut tar = Tarball::new();
        for _ in 0..400 {
            tar = tar.file(format!("{deep}y"), b"y").file("d", b"x").directory("d");
        }
        let layers = [tar.file("d/last", b"last").finish(), Tarball::new().file("above", b"a").finish()];
        let target = attack.image(&layers).await.expect("published");
        assert_eq!(fs::read(target.join("d/last")).expect("a file"), b"last");
        assert_eq!(fs::read_dir(target.join("d")).expect("a directory").count(), 1);
        assert!(target.join("above").exists());
    });
}

#[test]
fn t46_headers_with_two_readings_are_refused() {
    attack(async |mut attack| {
        // The size of the extended header counts, whatever the plain one says.
        let plain = Header::new("file", FILE);
        let lying = Header { size: 3, ..plain.clone() };
        for header in [&plain, &lying] {
            let archive = Tarball::new().pax(&[("size", b"5")]).entry(header, b"12345").finish();
            let target = attack.image(&[archive]).await.expect("published");
            assert_eq!(fs::read(target.join("file")).expect("a file"), b"12345");
        }
        attack.node.kill();
        let mut attack = Attack::start(&[]).await;
        let huge = Header { size: 1 << 30, ..Header::new("x", b'x') };
        let sparse = b"10 GNU.sparse.major=1\n";
        let table: Vec<(Tarball, &str)> = vec![
            (Tarball::new().pax(&[("path", b"a")]).extended(b'L', b"b\0").file("c", b""), "two names"),
            (Tarball::new().pax(&[("path", b"a")]).pax(&[("path", b"b")]).file("c", b""), "of a kind"),
            (Tarball::new().extended(b'L', b"a").extended(b'L', b"b").file("c", b""), "of a kind"),
            (Tarball::new().pax(&[("path", b"a")]), "describes nothing"),
            (Tarball::new().extended(b'x', b"6 a=b\nx").file("c", b""), "not sound"),
            (Tarball::new().extended(b'x', b"99 a=b\n").file("c", b""), "not sound"),
            (Tarball::new().extended(b'x', sparse).file("c", b""), "not sound"),
            (Tarball::new().pax(&[("size", b"-1")]).file("c", b""), "number"),
            (Tarball::new().pax(&[("path", b"a\0b")]).file("c", b""), "NUL"),
            (Tarball::new().pax(&[("path", b"\xff/../x")]).file("c", b""), "'..'"),
            (Tarball::new().extended(b'g', b"13 path=evil\n").file("c", b""), "global header"),
            (Tarball::new().entry(&huge, b""), "1 MiB"),
            (Tarball::new().extended(b'L', &vec![b'a'; (1 << 20) + 1]).file("c", b""), "1 MiB"),
            (
                Tarball::new()
                    .pax(&[("path", b"a"), ("size", b"512")])
                    .extended(b'g', b"13 comment=x\n")
                    .entry(&plain, b""),
                "between an extended one",
            ),
            (Tarball::new().extended(b'x', b"8 size=\n").file("c", b"x"), "empty name or size"),
            (
                Tarball::new().pax(&[("path", b"f"), ("size", b"512")]).entry(&Header::new("d/", 0), b""),
                "by one of its names",
            ),
            (Tarball::new().entry(&Header::new("z", b'Z'), b""), "unknown type"),
            (
                Tarball::new().raw(&{
                    let mut block = block(&plain);
                    block[0] = b'F';
                    block
                }),
                "wrong checksum",
            ),
        ];
        for (archive, rule) in table {
            attack.refuse_image(&[archive.finish()], &[rule]).await;
        }
    });
}

#[test]
fn t47_sparse_files_are_bounded_and_have_one_reading() {
    attack(async |mut attack| {
        let old = Tarball::new().entry(&Header::new("sparse", b'S'), b"").finish();
        attack.refuse_image(&[old], &["sparse"]).await;
        let one = |size: &'static [u8], map: &'static [u8]| {
            Tarball::new().pax(&[("GNU.sparse.size", size), ("GNU.sparse.map", map)])
        };
        let huge = b"9223372036854775807";
        let ten: [(&str, &[u8]); 3] =
            [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"9")];
        let many = "65537\n".to_owned();
        let table = [
            (one(huge, b"0,1").file("sparse", b"x"), "17592186044416 bytes"),
            // Below the limit of all content, and all but one byte of it would have to be hashed.
            (one(b"549755813888", b"0,1").file("sparse", b"x"), "bytes of zeros"),
            (one(b"9", b"5,1,0,1").file("sparse", b"xy"), "not sound"),
            (one(b"9", b"0,5").file("sparse", b"x"), "not sound"),
            (one(b"9", b"0,10").file("sparse", b"0123456789"), "not sound"),
            (one(b"9", b"9223372036854775807,9").file("sparse", b"x"), "not sound"),
            (one(b"9", b"0,1").directory("sparse"), "no file"),
            (Tarball::new().pax(&[("GNU.sparse.map", b"0,1")]).file("sparse", b"x"), "without its size"),
            (Tarball::new().pax(&[("GNU.sparse.major", b"7")]).file("sparse", b"x"), "without its size"),
            (Tarball::new().pax(&ten).file("sparse", many.as_bytes()), "65536 pieces"),
            (Tarball::new().pax(&ten).file("sparse", b"1\n0\n"), "not sound"),
            (Tarball::new().pax(&ten).file("sparse", b"1\n0\n1\n"), "not sound"),
            (Tarball::new().pax(&ten).file("sparse", b"x"), "not sound"),
            (Tarball::new().pax(&ten).file("sparse", b"x\n"), "number"),
        ];
        for (archive, rule) in table {
            attack.refuse_image(&[archive.finish()], &[rule]).await;
        }
        // A file that says it is larger than any disk.
        let huge =
            Tarball::new().pax(&[("size", b"9223372036854775807")]).entry(&Header::new("f", FILE), b"");
        attack.refuse_image(&[huge.finish()], &["17592186044416 bytes"]).await;
    });
}

#[test]
fn a_broken_archive_is_said_to_be_near_an_entry() {
    attack(async |mut attack| {
        let sparse = Header::new("sparse", b'S');
        let after = Tarball::new().file("before", b"x").entry(&sparse, b"").finish();
        attack.refuse_image(&[after], &["after entry \"before\": a sparse file"]).await;
        let mut cut = Tarball::new().file("before", b"x").file("large", &[1; 4096]).unfinished();
        cut.truncate(512 * 4);
        attack.refuse_image(&[cut], &["in entry \"large\": it ends within an entry"]).await;
    });
}

#[test]
fn regression_attributes_of_directories_take_little_memory() {
    attack(async |mut attack| {
        let names: Vec<String> = (0..31).map(|number| format!("SCHILY.xattr.user.a{number}")).collect();
        let with = |length: usize, directories: usize| {
            let value = vec![b'0'; length];
            let records: Vec<(&str, &[u8])> =
                names.iter().map(|name| (name.as_str(), value.as_slice())).collect();
            let mut tar = Tarball::new();
            for number in 0..directories {
                tar = tar.pax(&records).directory(format!("d{number}"));
            }
            gzip(&tar.finish()).expect("gzip")
        };
        attack.refuse_image(&[with(33_000, 250)], &["\"d0\"", "attributes take more than 65536"]).await;
        attack.refuse_image(&[with(2_000, 250)], &["1048576 bytes of attributes of directories"]).await;
        assert!(attack.node.memory("VmHWM") < 64 << 20, "{}", attack.node.memory("VmHWM"));
    });
}

#[test]
fn t50_images_of_file_systems_are_no_layers() {
    attack(async |mut attack| {
        let mut ext4 = vec![0_u8; 8192];
        ext4[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
        let mut erofs = vec![0_u8; 8192];
        erofs[1024..1028].copy_from_slice(&0xe0f5_e1e2_u32.to_le_bytes());
        for (blob, word) in [
            (ext4, "after the end"),
            (erofs, "after the end"),
            ([b"hsqs".as_slice(), &[1; 4092]].concat(), "squashfs"),
        ] {
            attack.refuse_image(&[blob], &[word]).await;
        }
        let pid = attack.node.pid();
        let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("it runs");
        assert!(
            table.contains(" tmpfs ") && ![" erofs ", " squashfs "].iter().any(|name| table.contains(name))
        );
    });
}
