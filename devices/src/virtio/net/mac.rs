//! Ethernet addresses: their text, and which card gets which. Nothing about frames.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An Ethernet address. Written as `52:54:00:12:34:56`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Bytes of an address.
    pub const LEN: usize = 6;
    /// All stations.
    pub const BROADCAST: Mac = Mac([0xff; 6]);
    /// The first card's address, as in QEMU.
    const FIRST: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];

    /// The address of card number `index` of a machine (0 is the first) if it was given no other.
    pub fn of_card(index: usize) -> Mac {
        let mut bytes = Mac::FIRST;
        bytes[5] = bytes[5].wrapping_add(index as u8);
        Mac(bytes)
    }

    /// Whether it means a group of stations, all of them included.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Text that is no address of a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// Not six bytes in hexadecimal digits.
    #[error("an address is six bytes such as 52:54:00:12:34:56")]
    Form,
    /// A group's address.
    #[error("that is the address of a group; a card's has an even first byte, such as 52:54:00:12:34:56")]
    Group,
    /// All zeros.
    #[error("no card has that address; 52:54:00:12:34:56 would do")]
    Zero,
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut mac = Mac([0; 6]);
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut parts = text.split(separator);
        for byte in &mut mac.0 {
            let part = parts.next().filter(|part| part.len() <= 2 && !part.starts_with('+'));
            *byte = part.and_then(|part| u8::from_str_radix(part, 16).ok()).ok_or(MacError::Form)?;
        }
        match parts.next() {
            Some(_) => Err(MacError::Form),
            None if mac.is_multicast() => Err(MacError::Group),
            None if mac.0 == [0; 6] => Err(MacError::Zero),
            None => Ok(mac),
        }
    }
}

impl TryFrom<String> for Mac {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_it_is_read() {
        assert_eq!("52:54:00:AB:34:56".parse::<Mac>().unwrap().to_string(), "52:54:00:ab:34:56");
    }

    #[test]
    fn cards_have_addresses_in_a_row() {
        assert_eq!(Mac::of_card(0).to_string(), "52:54:00:12:34:56");
        assert_eq!(Mac::of_card(10).to_string(), "52:54:00:12:34:60");
    }

    #[test]
    fn what_is_no_address_of_a_card_is_refused() {
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54:00:12:34:xx",
            "525400123456",
            "+2:0:0:0:0:1",
        ] {
            assert_eq!(text.parse::<Mac>(), Err(MacError::Form), "{text}");
        }
        assert_eq!("ff:ff:ff:ff:ff:ff".parse::<Mac>(), Err(MacError::Group));
        assert_eq!("00:00:00:00:00:00".parse::<Mac>(), Err(MacError::Zero));
    }
}
