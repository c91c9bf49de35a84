//! Soaks one target, or runs it on files. See the library for what the targets are.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is a program for people at a terminal")]

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hvrun_fuzz::{Failure, TARGETS, Target, runner, target};

/// How many inputs when nobody says.
const ITERATIONS: u64 = 200_000;
/// How often it says how far it is.
const REPORT: Duration = Duration::from_secs(10);

/// What the arguments say.
struct Options {
    target: Target,
    iterations: u64,
    seed: u64,
    corpus: Option<PathBuf>,
    trace: Option<PathBuf>,
    files: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let options = match parse(&args) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("hvrun-fuzz: {error:#}\n\n{}", help());
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hvrun-fuzz: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn help() -> String {
    let mut text =
        "Usage: hvrun-fuzz TARGET [--iterations N] [--seed S] [--corpus DIR] [--trace FILE] [FILE..]\n\n\
         Runs TARGET on its corpus and N damaged inputs, or on FILEs. With --corpus, writes the\n\
         corpus to DIR and runs nothing. The input that fails is printed and kept in a file.\n\
         --trace FILE keeps every input there before it runs: for those that end the process.\n\n"
            .to_owned();
    for target in TARGETS {
        text.push_str(&format!("  {:12} {}\n", target.name, target.about));
    }
    text
}

fn parse(args: &[OsString]) -> Result<Options> {
    let mut words = args.iter();
    let name = words.next().context("no target is named")?.to_string_lossy().into_owned();
    let target = target(&name).with_context(|| format!("there is no target '{name}'"))?;
    let mut options =
        Options { target, iterations: ITERATIONS, seed: 1, corpus: None, trace: None, files: Vec::new() };
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{} needs a value", word.to_string_lossy()));
        match word.to_str() {
            Some("--iterations") => options.iterations = number(value()?)?,
            Some("--seed") => options.seed = number(value()?)?,
            Some("--trace") => options.trace = Some(value()?.into()),
            Some("--corpus") => options.corpus = Some(value()?.into()),
            Some(option) if option.starts_with('-') => bail!("there is no option '{option}'"),
            _ => options.files.push(word.into()),
        }
    }
    Ok(options)
}

fn number(word: &OsString) -> Result<u64> {
    let text = word.to_string_lossy();
    text.parse().with_context(|| format!("'{text}' is no number"))
}

fn run(options: &Options) -> Result<()> {
    let target = options.target;
    if let Some(dir) = &options.corpus {
        std::fs::create_dir_all(dir)?;
        for (index, input) in (target.corpus)().into_iter().enumerate() {
            std::fs::write(dir.join(format!("{}-{index}", target.name)), input)?;
        }
        return Ok(());
    }
    let read =
        |path: &PathBuf| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let files: Vec<Vec<u8>> = options.files.iter().map(read).collect::<Result<_>>()?;
    let started = Instant::now();
    let mut reported = started;
    let progress = |count: u64| {
        if reported.elapsed() >= REPORT {
            reported = Instant::now();
            println!("{}: {count} inputs in {} s", target.name, started.elapsed().as_secs());
        }
        true
    };
    let outcome = match files.is_empty() {
        true => {
            let inputs = runner::inputs(target, options.iterations, options.seed);
            // A trace that cannot be written is missed when it is wanted, and no bug of the target.
            let traced = inputs.inspect(|input| {
                let _ = options.trace.as_ref().map(|path| std::fs::write(path, input));
            });
            runner::run_all(target, traced, progress)
        }
        false => runner::run_all(target, files.into_iter(), progress),
    };
    match outcome {
        Ok(count) => println!("{}: {count} inputs, no failure", target.name),
        Err(failure) => return keep(&failure),
    }
    Ok(())
}

/// Writes the input to a file whose name says which it is, and fails.
fn keep(failure: &Failure) -> Result<()> {
    let sum = failure.input.iter().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add((*byte).into()));
    let path = format!("failure-{}-{sum:08x}", failure.target);
    std::fs::write(&path, &failure.input).with_context(|| format!("cannot write {path}; {failure}"))?;
    ensure!(false, "{failure}\nthe input is in {path}: 'hvrun-fuzz {} {path}' runs it again", failure.target);
    Ok(())
}
