//! Runs a target on an input and notices what must not happen: a panic of any thread, too much memory, an input that does not end.
//! It knows no target.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use crate::{Mutator, Target, memory};

/// No input takes a thousandth of it; a busy machine may take it.
const PATIENCE: Duration = Duration::from_secs(60);
/// More than any target needs, and far less than a length out of the input could ask for.
pub const MOST_MEMORY: usize = 256 << 20;

/// An input that showed a bug.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The target's name.
    pub target: &'static str,
    /// The bytes.
    pub input: Vec<u8>,
    /// What happened.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\ninput of {} bytes: {}", self.target, self.what, self.input.len(), hex(&self.input))
    }
}

impl std::error::Error for Failure {}

/// Bytes as they are printed.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Panics of threads that a target has started, and the text of the last panic of each kind.
#[derive(Debug, Default)]
struct Panics {
    of_others: Vec<String>,
    of_runner: Option<String>,
}

static PANICS: Mutex<Panics> = Mutex::new(Panics { of_others: Vec::new(), of_runner: None });

/// The thread that runs targets: its panics are caught, and some that a target catches itself are no finding.
const RUNNER: &str = "fuzz target";

fn panics() -> std::sync::MutexGuard<'static, Panics> {
    PANICS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Panics and memory are counted for the whole process, so only one target runs at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
/// Whether one runs.
static RUNNING: AtomicBool = AtomicBool::new(false);

/// While a target runs, panics are remembered instead of printed: many are caught where they are expected.
fn hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let former = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let thread = std::thread::current();
            match thread.name() {
                _ if !RUNNING.load(Ordering::SeqCst) => former(info),
                Some(RUNNER) => panics().of_runner = Some(info.to_string()),
                name => panics().of_others.push(format!("thread {name:?}: {info}")),
            }
        }));
    });
}

/// Ends the process when an input does not end: its thread cannot be ended.
#[derive(Debug)]
struct Watchdog(Sender<Option<Vec<u8>>>);

impl Watchdog {
    fn new(target: &'static str) -> Self {
        let (sender, receiver) = mpsc::channel::<Option<Vec<u8>>>();
        std::thread::spawn(move || {
            let mut running: Option<Vec<u8>> = None;
            loop {
                let next = match &running {
                    None => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
                    Some(_) => receiver.recv_timeout(PATIENCE),
                };
                match (next, running.take()) {
                    (Ok(next), _) => running = next,
                    (Err(RecvTimeoutError::Timeout), Some(input)) => {
                        let what = format!("it has not ended after {PATIENCE:?}");
                        let failure = Failure { target, input, what };
                        // The one way to say it: the process ends here.
                        let _ = std::io::Write::write_all(
                            &mut std::io::stderr(),
                            format!("{failure}\n").as_bytes(),
                        );
                        std::process::abort();
                    }
                    (Err(_), _) => return,
                }
            }
        });
        Watchdog(sender)
    }

    fn begins(&self, input: &[u8]) {
        let _ = self.0.send(Some(input.to_vec()));
    }

    fn has_ended(&self) {
        let _ = self.0.send(None);
    }
}

/// Runs `target` on `inputs`, one after the other, until one shows a bug or `progress` says `false`.
///
/// # Errors
/// The input that showed it.
pub fn run_all(
    target: Target,
    inputs: impl Iterator<Item = Vec<u8>> + Send,
    mut progress: impl FnMut(u64) -> bool + Send,
) -> Result<u64, Failure> {
    hook();
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    *panics() = Panics::default();
    RUNNING.store(true, Ordering::SeqCst);
    let work = move || {
        let watchdog = Watchdog::new(target.name);
        let mut count = 0;
        for input in inputs {
            watchdog.begins(&input);
            let outcome = run_one(target, &input);
            watchdog.has_ended();
            outcome.map_err(|what| Failure { target: target.name, input, what })?;
            count += 1;
            if !progress(count) {
                break;
            }
        }
        Ok(count)
    };
    let outcome = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(RUNNER.to_owned()).spawn_scoped(scope, work);
        let thread = thread.map_err(|error| failure(target, format!("no thread: {error}")))?;
        thread.join().unwrap_or_else(|_| Err(failure(target, "making the input has panicked".to_owned())))
    });
    RUNNING.store(false, Ordering::SeqCst);
    outcome
}

fn failure(target: Target, what: String) -> Failure {
    Failure { target: target.name, input: Vec::new(), what }
}

fn run_one(target: Target, input: &[u8]) -> Result<(), String> {
    let before = memory::restart_peak();
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let used = memory::peak().saturating_sub(before);
    let mut panics = panics();
    if outcome.is_err() {
        return Err(panics.of_runner.take().unwrap_or_default());
    }
    if let Some(panic) = panics.of_others.pop() {
        return Err(panic);
    }
    if used > MOST_MEMORY {
        return Err(format!("{used} bytes of memory were allocated at once"));
    }
    Ok(())
}

/// The corpus of `target`, and then `iterations` mutations of it.
pub fn inputs(target: Target, iterations: u64, seed: u64) -> impl Iterator<Item = Vec<u8>> + Send {
    let corpus = (target.corpus)();
    let mut mutator = Mutator::new(corpus.clone(), target.unit, seed);
    corpus.into_iter().chain((0..iterations).map(move |_| mutator.next_input()))
}

/// Runs `target` on its corpus and then on `iterations` mutations of it.
///
/// # Errors
/// The first input that shows a bug.
pub fn soak(
    target: Target,
    iterations: u64,
    seed: u64,
    progress: impl FnMut(u64) -> bool + Send,
) -> Result<u64, Failure> {
    run_all(target, inputs(target, iterations, seed), progress)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toy(run: fn(&[u8])) -> Target {
        Target { name: "toy", about: "", run, corpus: || vec![vec![1], vec![2]], unit: 1, iterations: 0 }
    }

    #[test]
    fn a_panic_is_a_failure_with_its_input_and_its_words() {
        let failure = soak(toy(|input| assert!(input != [2], "two")), 0, 1, |_| true).unwrap_err();
        assert_eq!(failure.input, [2]);
        assert!(failure.what.contains("two"), "{failure}");
    }

    #[test]
    fn a_panic_of_another_thread_is_a_failure() {
        let run = |_: &[u8]| {
            let _ = std::thread::spawn(|| panic!("elsewhere")).join();
        };
        let failure = soak(toy(run), 0, 1, |_| true).unwrap_err();
        assert!(failure.what.contains("elsewhere"), "{failure}");
    }

    #[test]
    fn a_panic_that_the_target_catches_is_none() {
        let run = |_: &[u8]| {
            let _ = catch_unwind(|| panic!("expected"));
        };
        assert_eq!(soak(toy(run), 0, 1, |_| true).unwrap(), 2);
    }

    #[test]
    fn too_much_memory_is_a_failure() {
        let run = |_: &[u8]| drop(std::hint::black_box(Vec::<u8>::with_capacity(2 * MOST_MEMORY)));
        let failure = soak(toy(run), 0, 1, |_| true).unwrap_err();
        assert!(failure.what.contains("memory"), "{failure}");
    }
}
