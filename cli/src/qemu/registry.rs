//! Back-ends by their ids: what `-netdev`, `-drive`, `-chardev`, `-fsdev` and `-object` define, for devices to take by name. A device
//! may come before its back-end on the command line, so this is filled before the first device is looked at.

use super::nearest::did_you_mean;
use super::opts::{Opts, Refusal};

/// What one kind of option defines.
#[derive(Debug)]
pub struct Registry<T> {
    /// The kind, such as `netdev`.
    kind: &'static str,
    entries: Vec<Entry<T>>,
}

/// One definition.
#[derive(Debug)]
pub struct Entry<T> {
    pub id: String,
    pub value: T,
    /// The option that defines it.
    source: String,
    /// The option that has taken it.
    user: Option<String>,
}

impl<T> Registry<T> {
    /// Nothing yet. `kind` is the option without its dash.
    pub fn new(kind: &'static str) -> Self {
        Registry { kind, entries: Vec::new() }
    }

    /// Adds what `opts` define.
    pub fn insert(&mut self, opts: &Opts, id: String, value: T) -> Result<(), Refusal> {
        if let Some(other) = self.entries.iter().find(|entry| entry.id == id) {
            return Err(
                opts.refuse(format_args!("the id '{id}' is taken by {}; choose another", other.source))
            );
        }
        self.entries.push(Entry { id, value, source: opts.source(), user: None });
        Ok(())
    }

    /// Gives what is called `id` to the device `user`, the only one that may have it.
    pub fn take(&mut self, id: &str, user: &Opts) -> Result<&T, Refusal> {
        let entry = self.find(id, user)?;
        if let Some(other) = &entry.user {
            return Err(user.refuse(format_args!("{id} is used by {other}; it can only be used once")));
        }
        entry.user = Some(user.source());
        Ok(&entry.value)
    }

    /// What is called `id`, whoever else uses it.
    pub fn share(&mut self, id: &str, user: &Opts) -> Result<&mut T, Refusal> {
        let entry = self.find(id, user)?;
        entry.user = Some(user.source());
        Ok(&mut entry.value)
    }

    fn find(&mut self, id: &str, user: &Opts) -> Result<&mut Entry<T>, Refusal> {
        match self.entries.iter().position(|entry| entry.id == id) {
            Some(at) => Ok(&mut self.entries[at]),
            None => {
                let hint = did_you_mean(id, self.entries.iter().map(|entry| entry.id.as_str()));
                Err(user.refuse(format_args!("there is no -{} with the id '{id}'{hint}", self.kind)))
            }
        }
    }

    /// All of them, in the order of their definition.
    pub fn iter(&self) -> impl Iterator<Item = &Entry<T>> {
        self.entries.iter()
    }

    /// Takes those that nobody uses and that `may` wait for a device which comes later.
    pub fn spare(&mut self, may: impl Fn(&T) -> bool) -> Vec<(String, T)>
    where
        T: Clone,
    {
        let spare = self.entries.iter_mut().filter(|entry| entry.user.is_none() && may(&entry.value));
        spare
            .map(|entry| {
                entry.user = Some("a device that comes later".to_owned());
                (entry.id.clone(), entry.value.clone())
            })
            .collect()
    }

    /// Says which ones nobody uses; they are not opened.
    pub fn warn_of_unused(&self) {
        for entry in self.entries.iter().filter(|entry| entry.user.is_none()) {
            log::warn!("{}: no device uses it, so it is left alone", entry.source);
        }
    }
}
