//! What a user may type behind an option. It is refused with a sentence, or taken; and what is taken means the same when it is written
//! out and read again.

use std::fmt::Debug;
use std::str::FromStr;

use hvrun_devices::backend::chardev::ChardevConfig;
use hvrun_devices::backend::disk::DiskConfig;
use hvrun_devices::backend::ninep::ShareConfig;
use hvrun_devices::virtio::balloon::BalloonConfig;
use hvrun_devices::virtio::console::{self, ConsoleConfig, PortConfig};
use hvrun_devices::virtio::rng::RngConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The target `options`.
pub fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(disk) = parsed::<DiskConfig>(&text) {
        assert_eq!(disk.validate(), Ok(()), "{text:?}");
    }
    parsed::<ShareConfig>(&text);
    parsed::<RngConfig>(&text);
    parsed::<BalloonConfig>(&text);
    if let Some(place) = parsed::<ChardevConfig>(&text) {
        assert_eq!(place.to_string().parse(), Ok(place), "{text:?}");
    }
    if let Some(console) = parsed::<ConsoleConfig>(&text) {
        assert_eq!(console.to_string().parse(), Ok(console), "{text:?}");
    }
    if let Some(port) = parsed::<PortConfig>(&text) {
        assert!(console::validate(&[], std::slice::from_ref(&port)).is_ok(), "{text:?}");
        assert_eq!(port.to_string().parse(), Ok(port), "{text:?}");
    }
}

/// What `text` means as a `T`, which survives JSON; `None` if it is refused, for which there are words.
fn parsed<T>(text: &str) -> Option<T>
where
    T: FromStr<Err: ToString> + Serialize + DeserializeOwned + PartialEq + Debug,
{
    match text.parse::<T>() {
        Ok(value) => {
            let json = serde_json::to_string(&value).expect("options have a JSON form");
            let again: T = serde_json::from_str(&json).expect("that form is read");
            assert_eq!(again, value, "{text:?} is another thing after {json}");
            Some(value)
        }
        Err(error) => {
            assert!(!error.to_string().is_empty(), "{text:?} is refused without a word");
            None
        }
    }
}

/// One of each kind.
pub fn corpus() -> Vec<Vec<u8>> {
    let texts = [
        "root.qcow2,serial=root,format=qcow2,cache=none,ro,queues=4",
        "a,,b.raw,readonly=off,discard=unmap,werror=ignore,rerror=report,sync=full,lock=off,backing=off",
        "/home/me/src:src",
        "/a:b:tag,ro=on,security=mapped-xattr,squash=off,case-hack=on,multidevs=remap",
        "stdio",
        "file:/tmp/log",
        "unix:/tmp/sock",
        "unix-connect:/tmp/sock",
        "name=org.example.0,to=unix:/tmp/a,b",
        "max-bytes=1024,period=1000",
        "deflate-on-oom=on,free-page-reporting=off",
        "",
    ];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_means_something() {
        for seed in corpus() {
            let text = String::from_utf8(seed).unwrap();
            let means = parsed::<DiskConfig>(&text).is_some()
                || parsed::<ShareConfig>(&text).is_some()
                || parsed::<PortConfig>(&text).is_some()
                || parsed::<RngConfig>(&text).is_some()
                || parsed::<BalloonConfig>(&text).is_some();
            assert!(means, "{text:?}");
        }
    }
}
