//! Two measurements of a network that iperf3 does not have: exchanges of one byte over a connection, and connections made, used for one
//! byte and closed. Both sides; whoever calls says where they meet. Nothing here knows of guests.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// An answer that takes longer is an error.
const LIMIT: Duration = Duration::from_secs(20);

/// Sends back what each client sends, until accepting fails.
///
/// # Errors
/// What the host says when it does not accept.
pub fn serve(listener: &TcpListener) -> io::Result<()> {
    loop {
        match listener.accept() {
            Ok((stream, _)) => drop(thread::Builder::new().spawn(move || echo(stream))?),
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A client that goes away is no error.
fn echo(mut stream: TcpStream) {
    let mut bytes = [0; 4096];
    let _ = stream.set_nodelay(true);
    while let Ok(count) = stream.read(&mut bytes)
        && count > 0
        && stream.write_all(bytes.get(..count).unwrap_or_default()).is_ok()
    {}
}

fn connect(server: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&server, LIMIT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

/// Exchanges of a byte, one after the other over one connection, a second.
///
/// # Errors
/// The server is not there, or does not answer.
pub fn exchanges(server: SocketAddr, time: Duration) -> io::Result<f64> {
    let mut stream = connect(server)?;
    rate(time, || exchange(&mut stream))
}

/// Connections that are made, used for one exchange and closed, one after the other, a second.
///
/// # Errors
/// The server is not there, or does not answer.
pub fn connections(server: SocketAddr, time: Duration) -> io::Result<f64> {
    rate(time, || exchange(&mut connect(server)?))
}

/// How often a second `work` is done when it is done for `time`, and once at least.
fn rate(time: Duration, mut work: impl FnMut() -> io::Result<()>) -> io::Result<f64> {
    let start = Instant::now();
    let mut count = 0_u32;
    while count == 0 || start.elapsed() < time {
        work()?;
        count = count.saturating_add(1);
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        thread::spawn(move || serve(&listener));
        address
    }

    #[test]
    fn one_exchange_is_made_in_no_time_at_all() {
        assert!(exchanges(server(), Duration::ZERO).expect("an answer") > 0.0);
    }

    #[test]
    fn connections_come_one_after_the_other() {
        let server = server();
        assert!(connections(server, Duration::ZERO).expect("an answer") > 0.0);
        assert!(connections(server, Duration::ZERO).expect("another one") > 0.0);
    }

    #[test]
    fn server_that_is_not_there_is_an_error() {
        let nobody = TcpListener::bind("127.0.0.1:0").and_then(|gone| gone.local_addr()).expect("a port");
        assert!(exchanges(nobody, Duration::ZERO).is_err());
    }
}
