//! Serves a directory over 9P2000.L on a unix socket: `ninep_serve DIRECTORY SOCKET [ro]`. Not part of hvrun: an example of
//! the server used alone. A Linux client mounts it with `mount -t 9p -o trans=unix,version=9p2000.L SOCKET MOUNTPOINT`.

use std::os::unix::net::UnixListener;

use hvrun_devices::backend::ninep::{Session, Share, ShareConfig, serve};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (directory, socket, readonly) = match arguments.as_slice() {
        [directory, socket] => (directory, socket, false),
        [directory, socket, mode] if mode == "ro" => (directory, socket, true),
        _ => return Err("usage: ninep_serve DIRECTORY SOCKET [ro]".into()),
    };
    let mut config = ShareConfig::new(directory, "served");
    config.readonly = readonly;
    let share = Share::open(&config)?;
    for stream in UnixListener::bind(socket)?.incoming() {
        let (stream, share) = (stream?, share.clone());
        std::thread::spawn(move || {
            if let Err(error) = serve(&Session::new(share), stream) {
                log::warn!("{error}");
            }
        });
    }
    Ok(())
}
