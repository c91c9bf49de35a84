//! apt with private folders: it reads the machine's sources, keys and proxies, installs nothing and writes nothing outside its folder.
//! It knows packages and versions, not what they are for.

use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// apt for one architecture.
#[derive(Debug)]
pub struct Apt {
    dir: PathBuf,
    architecture: &'static str,
    /// Sources to use instead of the machine's.
    sources: Option<PathBuf>,
}

impl Apt {
    /// Prepares the folder `dir` and fetches the lists of packages of `architecture`, a name of Debian's such as `arm64`.
    pub fn prepare(dir: &Path, architecture: &'static str) -> Result<Apt> {
        Apt { dir: dir.to_owned(), architecture, sources: None }.updated()
    }

    /// The same with `sources`, the text of a file as in `/etc/apt/sources.list.d/*.sources`, instead of the machine's sources.
    pub fn prepare_with(dir: &Path, architecture: &'static str, sources: &str) -> Result<Apt> {
        let parts = dir.join("sources");
        fs::create_dir_all(&parts).with_context(|| format!("cannot create {}", parts.display()))?;
        fs::write(parts.join("hvrun.sources"), sources)?;
        Apt { dir: dir.to_owned(), architecture, sources: Some(parts) }.updated()
    }

    fn updated(self) -> Result<Apt> {
        for tool in ["apt-get", "apt-cache", "dpkg-deb", "tar"] {
            ensure!(crate::workspace::has_tool(tool), "'{tool}' is not installed here");
        }
        for sub in ["state/lists/partial", "cache/archives/partial", "debs"] {
            fs::create_dir_all(self.dir.join(sub))?;
        }
        fs::write(self.dir.join("state/status"), "")?;
        eprintln!("fetching the list of Debian's {} packages", self.architecture);
        self.run("apt-get", &["-qq", "update"]).context("apt could not update its lists of packages")?;
        Ok(self)
    }

    fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        let mut option = |name: &str, value: OsString| {
            let mut word = OsString::from(format!("-o{name}="));
            word.push(value);
            command.arg(word);
        };
        option("APT::Architecture", self.architecture.into());
        option("APT::Architectures", self.architecture.into());
        if let Some(sources) = &self.sources {
            option("Dir::Etc::SourceList", "/dev/null".into());
            option("Dir::Etc::SourceParts", sources.into());
        }
        let path = |sub: &str| self.dir.join(sub).into_os_string();
        option("Dir::State", path("state"));
        option("Dir::State::Lists", path("state/lists"));
        option("Dir::State::status", path("state/status"));
        option("Dir::Cache", path("cache"));
        option("Acquire::Languages", "none".into());
        option("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false".into());
        if rustix::process::geteuid().is_root() {
            // As root, apt downloads as the user _apt, who may not write into the checkout.
            option("APT::Sandbox::User", "root".into());
        }
        command.env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    /// Runs one of apt's tools and returns what it printed.
    pub fn run(&self, tool: &str, args: &[&str]) -> Result<String> {
        let mut command = self.command(tool);
        command.args(args).current_dir(self.dir.join("debs"));
        let output = command.output().with_context(|| format!("cannot run {tool}"))?;
        ensure!(
            output.status.success(),
            "{tool} {} failed: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What a meta-package stands for at the moment: its first dependency whose name begins with `prefix`.
    pub fn first_dependency(&self, package: &str, prefix: &str) -> Result<String> {
        let text = self.run("apt-cache", &["depends", package])?;
        match text.lines().find_map(|line| line.trim().strip_prefix("Depends: ")?.strip_prefix(prefix)) {
            Some(rest) => Ok(format!("{prefix}{rest}")),
            None => bail!("no configured source of packages has {package} for {}", self.architecture),
        }
    }

    /// The versions of `package` that the sources have.
    pub fn versions(&self, package: &str) -> Result<Vec<String>> {
        let text = self.run("apt-cache", &["madison", package])?;
        Ok(text.lines().filter_map(|line| Some(line.split('|').nth(1)?.trim().to_owned())).collect())
    }

    /// What `packages` need to run, themselves included, without what they only recommend.
    pub fn closure(&self, packages: &[&str]) -> Result<Vec<String>> {
        let args = [&["-qq", "--simulate", "--no-install-recommends", "install"], packages].concat();
        let text = self.run("apt-get", &args)?;
        let names = text.lines().filter_map(|line| line.strip_prefix("Inst ")?.split([' ', ':']).next());
        Ok(names.map(str::to_owned).collect())
    }

    /// Downloads packages, in one go, and returns the files in the same order.
    pub fn download_all(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        eprintln!("downloading {} packages for {}", packages.len(), self.architecture);
        let debs = self.dir.join("debs");
        for package in packages {
            for old in deb_files(&debs, package)? {
                fs::remove_file(&old).with_context(|| format!("cannot remove {}", old.display()))?;
            }
        }
        let mut args = vec!["-qq", "download"];
        args.extend(packages);
        self.run("apt-get", &args).context("apt could not download them")?;
        let file = |package: &&str| {
            deb_files(&debs, package)?
                .pop()
                .with_context(|| format!("apt-get download {package} left no file"))
        };
        packages.iter().map(file).collect()
    }

    /// Downloads `package`, a name or `name=version`, and returns the file.
    pub fn download(&self, package: &str) -> Result<PathBuf> {
        eprintln!("downloading {package} for {}", self.architecture);
        let debs = self.dir.join("debs");
        let name = package.split('=').next().unwrap_or(package);
        for old in deb_files(&debs, name)? {
            fs::remove_file(&old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
        self.run("apt-get", &["-qq", "download", package])
            .with_context(|| format!("apt could not download {package}"))?;
        deb_files(&debs, name)?.pop().with_context(|| format!("apt-get download {package} left no file"))
    }
}

/// Takes one file out of a package.
pub fn read_member(deb: &Path, member: &str) -> Result<Vec<u8>> {
    let mut unpack = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run dpkg-deb")?;
    let stream = unpack.stdout.take().context("dpkg-deb has no output")?;
    let output = Command::new("tar")
        .args(["--extract", "--to-stdout", "--file=-", member])
        .stdin(stream)
        .output()
        .context("cannot run tar")?;
    unpack.wait()?;
    ensure!(
        output.status.success() && !output.stdout.is_empty(),
        "{} has no {member}: {}",
        deb.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(output.stdout)
}

/// Unpacks a package into the folder `to`.
pub fn unpack(deb: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    let output =
        Command::new("dpkg-deb").arg("-x").arg(deb).arg(to).output().context("cannot run dpkg-deb")?;
    ensure!(
        output.status.success(),
        "cannot unpack {}: {}",
        deb.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn deb_files(debs: &Path, package: &str) -> Result<Vec<PathBuf>> {
    let prefix = format!("{package}_");
    let mut found = Vec::new();
    for entry in fs::read_dir(debs)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) && name.ends_with(".deb") {
            found.push(entry.path());
        }
    }
    Ok(found)
}
