//! Our `qemu-img` beside Debian's: each reads what the other has written, bit for bit, and both say the same with the same exit codes.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Result, ensure};
use hvrun_tests::artifacts;
use hvrun_tests::disks::Pattern;
use serde_json::Value;

const MIB: u64 = 1 << 20;
const PATTERN: Pattern = Pattern { seed: 6 };

/// A folder in which both programs work, ours under its name.
struct Bench {
    dir: tempfile::TempDir,
    ours: PathBuf,
}

impl Bench {
    fn new() -> Result<Bench> {
        let dir = tempfile::tempdir()?;
        let bin = dir.path().join("bin");
        fs::create_dir(&bin)?;
        let ours = bin.join("qemu-img");
        symlink(artifacts::hvrun()?, &ours)?;
        fs::create_dir(dir.path().join("work"))?;
        Ok(Bench { dir, ours })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("work").join(name)
    }

    /// How many files there are, hidden ones included.
    fn files(&self) -> Result<usize> {
        Ok(fs::read_dir(self.path(""))?.count())
    }

    fn run(&self, program: &Path, words: &str) -> Result<Output> {
        Ok(Command::new(program).args(words.split(' ')).current_dir(self.path("")).output()?)
    }

    /// Ours, with words that have no spaces.
    fn ours(&self, words: &str) -> Result<Output> {
        self.run(&self.ours, words)
    }

    /// Ours, which must succeed.
    fn ok(&self, words: &str) -> Result<String> {
        succeeded(words, self.ours(words)?)
    }

    /// Debian's, which must succeed.
    fn theirs(&self, words: &str) -> Result<String> {
        succeeded(words, self.run(Path::new("qemu-img"), words)?)
    }

    /// That both end with the same exit code and say the same on standard output.
    fn same(&self, words: &str) -> Result<()> {
        let (ours, theirs) = (self.ours(words)?, self.run(Path::new("qemu-img"), words)?);
        assert_eq!(text(&ours.stdout), text(&theirs.stdout), "{words}");
        assert_eq!(ours.status.code(), theirs.status.code(), "{words}");
        Ok(())
    }

    /// That ours ends with 1, says `message`, and leaves no new file.
    fn refused(&self, words: &str, message: &str) -> Result<()> {
        let before = self.files()?;
        let output = self.ours(words)?;
        let said = text(&output.stderr);
        ensure!(output.status.code() == Some(1), "{words}: {:?}\n{said}", output.status);
        ensure!(said.starts_with("qemu-img: ") && said.contains(message), "{words}: {said}");
        ensure!(self.files()? == before, "{words}: a file was left behind");
        Ok(())
    }

    /// A raw image with data, a hole, zeros, and data to its odd end.
    fn sparse(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        PATTERN.write(&path, 3 * MIB)?;
        let file = fs::OpenOptions::new().write(true).open(&path)?;
        file.set_len(40 * MIB)?;
        use std::os::unix::fs::FileExt;
        file.write_all_at(&vec![0; 1 << 20], 20 * MIB)?;
        file.write_all_at(&[7; 1536], 40 * MIB - 512)?;
        Ok(path)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn succeeded(words: &str, output: Output) -> Result<String> {
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    ensure!(output.status.success(), "qemu-img {words}: {}\n{said}", output.status);
    Ok(text(&output.stdout))
}

#[test]
fn what_we_convert_is_sound_and_identical() -> Result<()> {
    let bench = Bench::new()?;
    bench.sparse("a.raw")?;
    for options in [
        "",
        "-c ",
        "-o cluster_size=512 ",
        "-o compat=0.10 ",
        "-c -o cluster_size=2M ",
        "-p -o lazy_refcounts=on ",
    ] {
        bench.ok(&format!("convert -f raw -O qcow2 {options}a.raw a.qcow2"))?;
        bench.theirs("check -f qcow2 a.qcow2")?;
        bench.theirs("compare -f raw -F qcow2 a.raw a.qcow2")?;
        bench.same("check a.qcow2")?;
    }
    Ok(())
}

#[test]
fn what_debian_converts_comes_back_bit_for_bit() -> Result<()> {
    let bench = Bench::new()?;
    let raw = bench.sparse("a.raw")?;
    for options in
        ["", "-c ", "-o cluster_size=4k ", "-o compat=0.10 ", "-c -o cluster_size=2M ", "-o refcount_bits=1 "]
    {
        bench.theirs(&format!("convert -f raw -O qcow2 {options}a.raw a.qcow2"))?;
        bench.same("check a.qcow2")?;
        bench.ok("convert -O raw a.qcow2 b.raw")?;
        ensure!(fs::read(&raw)? == fs::read(bench.path("b.raw"))?, "{options}: the bytes are others");
    }
    Ok(())
}

#[test]
fn holes_and_zeros_take_no_room_in_a_copy() -> Result<()> {
    let bench = Bench::new()?;
    let source = fs::metadata(bench.sparse("a.raw")?)?.blocks();
    bench.ok("convert -f raw -O raw a.raw b.raw")?;
    bench.ok("convert -f raw -O qcow2 a.raw b.qcow2")?;
    bench.ok("convert -O raw b.qcow2 c.raw")?;
    for name in ["b.raw", "c.raw"] {
        let blocks = fs::metadata(bench.path(name))?.blocks();
        // The megabyte of zeros is gone, too.
        ensure!(blocks < source, "{name} takes {blocks} blocks, its source {source}");
    }
    ensure!(fs::metadata(bench.path("b.qcow2"))?.len() < 4 * MIB, "the qcow2 image is too long");
    Ok(())
}

#[test]
fn the_invocations_of_nixpkgs_work() -> Result<()> {
    let bench = Bench::new()?;
    assert_eq!(bench.ok("create -f raw empty0.raw 8M")?, "Formatting 'empty0.raw', fmt=raw size=8388608\n");
    bench.ok("create -f qcow2 empty0.qcow2 8M")?;
    bench.ok("create -f qcow2 -o size=16M sized.qcow2")?;
    bench.ok("create -f qcow2 -b sized.qcow2 -F qcow2 over.qcow2")?;
    bench.ok("create -f qcow2 -b sized.qcow2 -F qcow2 larger.qcow2 32M")?;
    bench.ok("create -f qcow2 -F qcow2 -o backing_file=sized.qcow2 ec2.qcow2")?;
    bench.ok("create -f qcow2 -F raw -b empty0.raw boot.qcow2")?;
    bench.ok("convert -f raw -O qcow2 empty0.raw disk.qcow2")?;
    bench.ok("convert -O raw empty0.qcow2 out.raw")?;
    bench.ok("resize disk.qcow2 +1G")?;
    bench.ok("resize over.qcow2 10G")?;
    assert_eq!(bench.ok("resize -f raw out.raw +32M")?, "Image resized.\n");
    for (name, size) in [
        ("empty0.raw", 8 * MIB),
        ("empty0.qcow2", 8 * MIB),
        ("larger.qcow2", 32 * MIB),
        ("ec2.qcow2", 16 * MIB),
        ("boot.qcow2", 8 * MIB),
        ("disk.qcow2", 1032 * MIB),
        ("over.qcow2", 10240 * MIB),
        ("out.raw", 40 * MIB),
    ] {
        let info: Value = serde_json::from_str(&bench.theirs(&format!("info --output=json {name}"))?)?;
        assert_eq!(info["virtual-size"], size, "{name}");
    }
    Ok(())
}

#[test]
fn a_new_image_is_announced_as_qemu_does_and_has_what_was_asked_for() -> Result<()> {
    let bench = Bench::new()?;
    bench.theirs("create -q -f raw base 1M")?;
    for options in [
        "a 10M",
        "-o compat=0.10 a 10M",
        "-o cluster_size=4k,lazy_refcounts=on a 10M",
        "-o preallocation=metadata a 10M",
        "-b base -F raw a",
        "-b base -F raw -o compat=0.10 a 1000",
    ] {
        bench.same(&format!("create -f qcow2 {options}"))?;
        bench.ok(&format!("create -f qcow2 {options}"))?;
        bench.theirs("check -q a")?;
        bench.same("info --output=json a").or_else(|_| bench.same("info a"))?;
    }
    Ok(())
}

#[test]
fn information_is_the_same_in_text_and_json() -> Result<()> {
    let bench = Bench::new()?;
    PATTERN.write(&bench.path("base.raw"), MIB)?;
    bench.theirs("create -q -f qcow2 -b base.raw -F raw middle.qcow2 2M")?;
    bench.theirs("create -q -f qcow2 -o cluster_size=4k -b middle.qcow2 -F qcow2 top.qcow2")?;
    for image in ["base.raw", "top.qcow2", "--backing-chain top.qcow2", "-U top.qcow2"] {
        bench.same(&format!("info {image}"))?;
        bench.same(&format!("info --output=json {image}"))?;
    }
    Ok(())
}

#[test]
fn a_chain_becomes_one_image() -> Result<()> {
    let bench = Bench::new()?;
    bench.sparse("base.raw")?;
    bench.ok("create -q -f qcow2 -b base.raw -F raw middle.qcow2")?;
    bench.theirs("convert -n -f raw -O qcow2 base.raw middle.qcow2")?;
    bench.ok("create -q -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2 50M")?;
    bench.ok("convert -O qcow2 top.qcow2 flat.qcow2")?;
    bench.theirs("compare top.qcow2 flat.qcow2")?;
    bench.theirs("check -q flat.qcow2")?;
    let info: Value = serde_json::from_str(&bench.ok("info --output=json flat.qcow2")?)?;
    assert_eq!((&info["backing-filename"], &info["virtual-size"]), (&Value::Null, &Value::from(50 * MIB)));
    Ok(())
}

#[test]
fn a_chain_of_version_2_says_its_formats() -> Result<()> {
    let bench = Bench::new()?;
    PATTERN.write(&bench.path("a.raw"), MIB)?;
    bench.theirs("convert -f raw -O qcow2 -o compat=0.10 a.raw a.qcow2")?;
    bench.theirs("create -q -f qcow2 -o compat=0.10 -b a.qcow2 -F qcow2 theirs.qcow2")?;
    bench.ok("create -q -f qcow2 -o compat=0.10 -b a.qcow2 -F qcow2 ours.qcow2")?;
    for image in ["theirs.qcow2", "ours.qcow2"] {
        bench.ok(&format!("convert -O raw {image} b.raw"))?;
        PATTERN.check(&bench.path("b.raw"), 0..2048)?;
        bench.theirs(&format!("compare a.raw -f raw {image} -F qcow2"))?;
    }
    Ok(())
}

#[test]
fn an_existing_image_takes_a_copy_and_keeps_its_layout() -> Result<()> {
    let bench = Bench::new()?;
    bench.sparse("a.raw")?;
    bench.theirs("create -q -f qcow2 -o cluster_size=4k b.qcow2 40M")?;
    PATTERN.write(&bench.path("other.raw"), 40 * MIB)?;
    bench.theirs("convert -n -f raw -O qcow2 other.raw b.qcow2")?;
    // a.raw ends within a sector, so its disk is a sector longer.
    bench.ok("resize -q b.qcow2 41M")?;
    bench.ok("convert -n -f raw -O qcow2 a.raw b.qcow2")?;
    bench.theirs("check -q b.qcow2")?;
    bench.theirs("compare -f raw a.raw b.qcow2")?;
    bench.refused("convert -n -f raw -O qcow2 other.raw none.qcow2", "No such file")?;
    Ok(())
}

#[test]
fn a_commit_moves_all_data_to_the_backing_image() -> Result<()> {
    let bench = Bench::new()?;
    bench.sparse("base.raw")?;
    bench.theirs("convert -f raw -O qcow2 base.raw base.qcow2")?;
    PATTERN.write(&bench.path("new.raw"), 41 * MIB)?;
    bench.ok("create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 41M")?;
    bench.theirs("convert -n -f raw -O qcow2 new.raw top.qcow2")?;
    assert_eq!(bench.ok("commit top.qcow2")?, "Image committed.\n");
    for image in ["base.qcow2", "top.qcow2"] {
        bench.theirs(&format!("check -q {image}"))?;
        bench.theirs(&format!("compare -f raw -F qcow2 new.raw {image}"))?;
    }
    let map: Value = serde_json::from_str(&bench.theirs("map --output=json top.qcow2")?)?;
    assert_eq!(map[0]["depth"], 1);
    Ok(())
}

#[test]
fn a_rebase_changes_the_name_only() -> Result<()> {
    let bench = Bench::new()?;
    PATTERN.write(&bench.path("base.raw"), MIB)?;
    bench.theirs("create -q -f qcow2 -b base.raw -F raw top.qcow2")?;
    fs::rename(bench.path("base.raw"), bench.path("a-much-longer-name-than-before.raw"))?;
    bench.ok("rebase -u -b a-much-longer-name-than-before.raw -F raw top.qcow2")?;
    bench.theirs("compare -f raw -F qcow2 a-much-longer-name-than-before.raw top.qcow2")?;
    bench.theirs("check -q top.qcow2")?;
    bench.same("info --output=json top.qcow2")?;
    let emptied =
        Command::new(&bench.ours).args(["rebase", "-u", "-b", ""]).arg(bench.path("top.qcow2")).status()?;
    ensure!(emptied.success(), "rebase -b \"\": {emptied}");
    bench.same("info --output=json top.qcow2")
}

#[test]
fn a_resized_disk_has_its_data_and_zeros() -> Result<()> {
    let bench = Bench::new()?;
    for format in ["raw", "qcow2"] {
        PATTERN.write(&bench.path("a.raw"), MIB)?;
        bench.theirs(&format!("convert -f raw -O {format} a.raw b"))?;
        bench.ok(&format!("resize -f {format} b 3M"))?;
        bench.ok(&format!("resize -f {format} b +1T"))?;
        bench.refused(&format!("resize -f {format} b 1M"), "Use the --shrink option")?;
        bench.ok(&format!("resize -f {format} --shrink b -1T"))?;
        bench.theirs(&format!("compare -f raw -F {format} a.raw b"))?;
        bench.ok(&format!("resize -f {format} --shrink b 512k"))?;
        bench.ok(&format!("resize -f {format} b 1M"))?;
        bench.ok(&format!("convert -f {format} -O raw b c.raw"))?;
        PATTERN.check(&bench.path("c.raw"), 0..1024)?;
        ensure!(
            fs::read(bench.path("c.raw"))?[512 << 10..].iter().all(|byte| *byte == 0),
            "old data is back"
        );
    }
    bench.theirs("check -q b")?;
    Ok(())
}

#[test]
fn maps_and_measures_are_the_same() -> Result<()> {
    let bench = Bench::new()?;
    bench.sparse("a.raw")?;
    bench.theirs("convert -f raw -O qcow2 a.raw a.qcow2")?;
    bench.theirs("create -q -f qcow2 -b a.qcow2 -F qcow2 top.qcow2 80M")?;
    for words in [
        "map a.raw",
        "map a.qcow2",
        "map top.qcow2",
        "measure --size 1G -O qcow2",
        "measure --size 100G -O qcow2 -o cluster_size=4k",
        "measure -O qcow2 a.qcow2",
        "measure --output=json -O qcow2 a.qcow2",
        "measure --output=json -O raw a.qcow2",
    ] {
        bench.same(words)?;
    }
    // Newer versions say of each part whether it is compressed; Debian's does not yet.
    let ours = bench.ok("map --output=json top.qcow2")?.replace(", \"compressed\": false", "");
    assert_eq!(ours, bench.theirs("map --output=json top.qcow2")?);
    Ok(())
}

#[test]
fn leaks_end_a_check_with_3_and_damage_with_2() -> Result<()> {
    use std::os::unix::fs::FileExt;
    let bench = Bench::new()?;
    PATTERN.write(&bench.path("a.raw"), MIB)?;
    bench.theirs("convert -f raw -O qcow2 a.raw a.qcow2")?;
    let file = fs::OpenOptions::new().write(true).open(bench.path("a.qcow2"))?;
    // Its refcount block is the third cluster; a count has two bytes. Behind its 21 clusters comes one that nobody uses.
    file.set_len(22 << 16)?;
    file.write_all_at(&[0, 1], 0x20000 + 2 * 21)?;
    bench.same("check a.qcow2")?;
    assert_eq!(bench.ours("check a.qcow2")?.status.code(), Some(3));
    file.write_all_at(&[0, 0], 0x20000 + 2 * 7)?;
    assert_eq!(bench.ours("check a.qcow2")?.status.code(), Some(2));
    assert_eq!(bench.ours("check -r leaks a.qcow2")?.status.code(), Some(2));
    bench.ok("check -r all a.qcow2")?;
    bench.theirs("check a.qcow2")?;
    bench.theirs("compare -f raw a.raw a.qcow2")?;
    assert_eq!(bench.ours("check -f raw a.raw")?.status.code(), Some(63));
    Ok(())
}

#[test]
fn internal_snapshots_are_counted_by_a_check() -> Result<()> {
    let bench = Bench::new()?;
    PATTERN.write(&bench.path("a.raw"), MIB)?;
    bench.theirs("convert -f raw -O qcow2 a.raw a.qcow2")?;
    bench.theirs("snapshot -c first a.qcow2")?;
    bench.same("check a.qcow2")
}

#[test]
fn a_full_disk_leaves_the_old_file() -> Result<()> {
    let bench = Bench::new()?;
    PATTERN.write(&bench.path("a.raw"), 8 * MIB)?;
    for (format, words) in [("raw", "-O raw"), ("qcow2", "-O qcow2"), ("compressed", "-c -O qcow2")] {
        fs::write(bench.path("target"), b"old")?;
        let before = bench.files()?;
        // A limit of 1 MiB on what a file may become, in blocks of 512 bytes or of 1 KiB as the shell has it.
        let script =
            format!("ulimit -f 1024; exec '{}' convert -f raw {words} a.raw target", bench.ours.display());
        let output = Command::new("sh").args(["-c", &script]).current_dir(bench.path("")).output()?;
        let said = text(&output.stderr);
        ensure!(output.status.code() == Some(1) && said.starts_with("qemu-img: "), "{format}: {output:?}");
        assert_eq!(fs::read(bench.path("target"))?, b"old", "{format}");
        assert_eq!(bench.files()?, before, "{format}: {said}");
    }
    Ok(())
}

#[test]
fn an_image_in_use_is_refused() -> Result<()> {
    let bench = Bench::new()?;
    bench.ok("create -q -f qcow2 a.qcow2 1M")?;
    PATTERN.write(&bench.path("b.raw"), MIB)?;
    let mut io = Command::new("qemu-io")
        .arg(bench.path("a.qcow2"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    // Its prompt says that it has the image.
    let mut prompt = [0; 1];
    std::io::Read::read_exact(
        &mut io.stdout.take().ok_or_else(|| anyhow::anyhow!("no stdout"))?,
        &mut prompt,
    )?;
    bench.refused("convert -f raw -O qcow2 b.raw a.qcow2", "Is another process using the image")?;
    bench.refused("resize a.qcow2 2M", "Is another process using the image")?;
    bench.refused("rebase -u -b x -F raw a.qcow2", "Is another process using the image")?;
    bench.refused("info a.qcow2", "Is another process using the image")?;
    bench.ok("info -U a.qcow2")?;
    drop(io.stdin.take());
    io.wait()?;
    Ok(())
}

#[test]
fn bad_input_is_answered_with_one_clear_message() -> Result<()> {
    let bench = Bench::new()?;
    bench.ok("create -q -f raw a.raw 1M")?;
    bench.ok("create -q -f qcow2 a.qcow2 1M")?;
    for (words, message) in [
        ("create", "Expecting image file name"),
        ("create -f zvmdk x 1M", "x: Unknown file format 'zvmdk'"),
        ("create -f qcow2 x", "Image creation needs a size parameter"),
        ("create -f qcow2 x 1Z", "Invalid image size specified"),
        ("create -f qcow2 x 16E", "Must be between 0 and 9223372036854775807"),
        ("create -f qcow2 x 1M more", "Unexpected argument: more"),
        ("create -f qcow2 -o foo=1 x 1M", "Invalid parameter 'foo'"),
        ("create -f qcow2 -o cluster_size=3k x 1M", "Cluster size must be a power of two"),
        ("create -f qcow2 -o preallocation=full x 1M", "preallocation=full is not supported"),
        ("create -f qcow2 -o cluster_size=512 x 1T", "too large"),
        ("create -f qcow2 -o compat=0.10,lazy_refcounts=on x 1M", "Lazy refcounts only supported"),
        (
            "create -f qcow2 -b a.raw x",
            "Backing file specified without backing format\nDetected format of raw.",
        ),
        ("create -f qcow2 -b none -F raw x", "Could not open 'none': No such file or directory"),
        ("create -f qcow2 -b a.raw -F qcow2 x", "not a qcow2 image"),
        ("create -f raw -b a.raw -F raw x 1M", "Backing file not supported"),
        ("create -f raw none/x 1M", "Could not create 'none/x': No such file or directory"),
        ("create -f raw . 1M", "is a directory"),
        ("create --foo", "unrecognized option '--foo'"),
        ("create -f", "missing argument for option '-f'"),
        ("convert a.raw", "Must specify image file name"),
        ("convert none x", "Could not open 'none': Could not open 'none': No such file or directory"),
        ("convert -f zvmdk a.raw x", "Unknown driver 'zvmdk'"),
        ("convert -O zvmdk a.raw x", "Unknown file format 'zvmdk'"),
        ("convert -f qcow2 a.raw x", "not a qcow2 image"),
        ("convert -c -O raw a.raw x", "Compression not supported"),
        ("convert -f raw -O raw a.raw a.raw", "Is another process using the image"),
        ("resize a.qcow2 zz", "expects a non-negative number"),
        ("resize -f raw a.raw -- -2M", "New image size must be positive"),
        ("resize a.qcow2", "Not enough arguments"),
        ("commit a.qcow2", "Image does not have a backing file"),
        ("rebase -u -b base a.qcow2", "backing format must be specified"),
        ("rebase -b base -F raw a.qcow2", "rebase copies no data"),
        ("info none", "No such file or directory"),
        ("info --output=xml a.raw", "--output must be used with human or json"),
        ("measure -O qcow2", "Either --size N or one filename"),
        ("frobnicate", "Command not found: frobnicate"),
    ] {
        bench.refused(words, message)?;
    }
    Ok(())
}

#[test]
fn the_version_can_be_read_by_tools() -> Result<()> {
    let bench = Bench::new()?;
    let version = bench.ok("--version")?;
    let number = version.strip_prefix("qemu-img version ").and_then(|rest| rest.split(' ').next());
    ensure!(
        number.is_some_and(|number| number.split('.').all(|part| part.parse::<u32>().is_ok())),
        "{version}"
    );
    ensure!(bench.ok("--help")?.contains("Supported formats: raw qcow2"), "no formats");
    Ok(())
}
