//! A character device on standard input and output, which the caller hands over as descriptors.
//!
//! It neither knows which descriptors these are nor touches their modes; raw mode is [`super::terminal`]'s.

use super::fd::{FdSink, FdSource};
use super::stream::{Parts, Source, Stream};
use super::{ChardevError, StdioStreams};

impl Stream {
    /// Starts to read and write `streams`.
    pub fn stdio(streams: StdioStreams) -> Result<Stream, ChardevError> {
        let source = streams.input.map(|fd| Box::new(FdSource::new(fd)) as Box<dyn Source>);
        Stream::start(Parts {
            name: "stdio".to_owned(),
            source,
            sink: Box::new(FdSink(streams.output)),
            direct: None,
            filter: streams.filter,
            terminal: None,
            interrupt: None,
        })
    }
}
