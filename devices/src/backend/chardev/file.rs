//! A character device into a file: output only.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use super::ChardevError;
use super::fd::FdSink;
use super::stream::Stream;

impl Stream {
    /// Creates or empties the file at `path` and writes output into it.
    pub fn file(path: &Path) -> Result<Stream, ChardevError> {
        Stream::into_file(path, File::create(path))
    }

    /// Creates the file at `path` if it is not there, and writes output behind what is in it.
    pub fn file_append(path: &Path) -> Result<Stream, ChardevError> {
        Stream::into_file(path, OpenOptions::new().append(true).create(true).open(path))
    }

    fn into_file(path: &Path, file: io::Result<File>) -> Result<Stream, ChardevError> {
        let file = file.map_err(|source| ChardevError::File { path: path.to_owned(), source })?;
        Stream::to_writer(&format!("file:{}", path.display()), Box::new(FdSink(file.into())))
    }
}
