//! A character device into a file: output only.

use std::fs::File;
use std::path::Path;

use super::ChardevError;
use super::fd::FdSink;
use super::stream::Stream;

impl Stream {
    /// Creates or empties the file at `path` and writes output into it.
    pub fn file(path: &Path) -> Result<Stream, ChardevError> {
        let file =
            File::create(path).map_err(|source| ChardevError::File { path: path.to_owned(), source })?;
        Stream::to_writer(&format!("file:{}", path.display()), Box::new(FdSink(file.into())))
    }
}
