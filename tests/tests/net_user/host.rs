//! The host's side: servers on its loopback, and ports for forwardings. What they expect of the guest is their callers' affair.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use anyhow::{Context, Result};

use crate::PATIENCE;

/// The host's loopback.
pub const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A server that does `serve` with each client, one after the other, and hands over what that gives.
pub fn server<T: Send + 'static>(
    address: IpAddr,
    serve: impl Fn(TcpStream) -> Result<T> + Send + 'static,
) -> Result<(u16, Receiver<Result<T>>)> {
    let listener = TcpListener::bind((address, 0))?;
    let port = listener.local_addr()?.port();
    let (results, receiver) = channel();
    thread::spawn(move || {
        for client in listener.incoming() {
            let result = client.map_err(Into::into).and_then(|client| {
                client.set_read_timeout(Some(PATIENCE))?;
                client.set_write_timeout(Some(PATIENCE))?;
                serve(client)
            });
            if results.send(result).is_err() {
                return;
            }
        }
    });
    Ok((port, receiver))
}

/// What the next client of [`server`] gave.
pub fn next<T>(results: &Receiver<Result<T>>) -> Result<T> {
    results.recv_timeout(PATIENCE).context("no client")?
}

/// Reads until the client sends no more, and only then sends all of it back.
pub fn give_back(mut client: TcpStream) -> Result<usize> {
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).context("from the guest")?;
    client.write_all(&bytes).context("to the guest")?;
    Ok(bytes.len())
}

/// Sends `bytes` and no more, and only then reads until the other side's end.
pub fn ask(mut peer: &TcpStream, bytes: &[u8]) -> Result<Vec<u8>> {
    peer.set_read_timeout(Some(PATIENCE))?;
    peer.set_write_timeout(Some(PATIENCE))?;
    peer.write_all(bytes).context("to the guest")?;
    peer.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    peer.read_to_end(&mut answer).context("from the guest")?;
    Ok(answer)
}

/// A socket for datagrams, whose reads end some time.
pub fn datagram_socket() -> Result<(UdpSocket, u16)> {
    let socket = UdpSocket::bind((LOOPBACK, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let port = socket.local_addr()?.port();
    Ok((socket, port))
}

/// Takes the next datagram.
pub fn receive(socket: &UdpSocket) -> Result<(Vec<u8>, SocketAddr)> {
    let mut buffer = vec![0; 65536];
    let (len, from) = socket.recv_from(&mut buffer).context("no datagram")?;
    buffer.truncate(len);
    Ok((buffer, from))
}

/// A port for a forwarding that nobody has. It lies below those that hosts give to whoever does not care (32768 on Linux, 49152 on
/// macOS), and not where another test's process looks first.
pub fn free_port() -> Result<u16> {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 1000)? * 20;
    loop {
        let port = 10_000 + (first + TRIED.fetch_add(1, Ordering::SeqCst)) % 20_000;
        let free = |address: &str| {
            TcpListener::bind((address, port)).is_ok() && UdpSocket::bind((address, port)).is_ok()
        };
        if free("0.0.0.0") && free("::1") {
            return Ok(port);
        }
    }
}

/// Bytes that look like no others.
pub fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let next = || {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(len).collect()
}
