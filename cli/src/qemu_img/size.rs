//! Sizes as QEMU reads them: a number, perhaps with a fraction, and a suffix; `0x` for bytes in hexadecimal.

use super::fail::Fail;

/// Why a text is no size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SizeError {
    /// It is no number with a suffix that is known.
    Invalid,
    /// It is larger than a file can be.
    TooLarge,
}

impl SizeError {
    /// What QEMU says to it.
    pub fn image_size(self) -> Fail {
        Fail::new(match self {
            SizeError::Invalid => {
                "Invalid image size specified. You may use k, M, G, T, P or E suffixes for\n\
                 qemu-img: kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes."
            }
            SizeError::TooLarge => "Invalid image size specified. Must be between 0 and 9223372036854775807.",
        })
    }
}

/// The bytes that `text` means; without a suffix, they are bytes.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let checked = |size: u64| if size > i64::MAX as u64 { Err(SizeError::TooLarge) } else { Ok(size) };
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        // Without a sign, which the library would take.
        if digits.is_empty() || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(SizeError::Invalid);
        }
        return checked(u64::from_str_radix(digits, 16).map_err(|_| SizeError::TooLarge)?);
    }
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (whole, rest) = text.split_at(end);
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())),
        None => ("", rest),
    };
    let shift = match suffix {
        "" | "b" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return Err(SizeError::Invalid),
    };
    // Half a byte is nothing.
    if whole.is_empty() || (shift == 0 && !fraction.is_empty()) {
        return Err(SizeError::Invalid);
    }
    let whole: u64 = whole.parse().map_err(|_| SizeError::TooLarge)?;
    let bytes = whole.checked_mul(1 << shift).ok_or(SizeError::TooLarge)?;
    checked(bytes.saturating_add(part_of(fraction, 1 << shift)))
}

/// `0.fraction` of `unit`, rounded down.
fn part_of(fraction: &str, unit: u64) -> u64 {
    // More digits than these are less than a byte of the largest unit.
    let digits = fraction.get(..fraction.len().min(18)).unwrap_or_default();
    let Ok(value) = digits.parse::<u128>() else { return 0 };
    (value * u128::from(unit) / 10_u128.pow(digits.len() as u32)) as u64
}

/// `size` for people, as QEMU shows it: three digits and a unit.
pub fn human(size: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    let mut value = size as f64;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = match value {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text} {}", UNITS.get(unit).unwrap_or(&"B"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_powers_of_1024() {
        let sizes = [("0", 0), ("512", 512), ("1b", 1), ("1k", 1 << 10), ("2M", 2 << 20), ("10G", 10 << 30)];
        for (text, size) in sizes.into_iter().chain([("1T", 1 << 40), ("3P", 3 << 50), ("7E", 7 << 60)]) {
            assert_eq!(parse(text), Ok(size), "{text}");
            assert_eq!(parse(&text.to_lowercase()), Ok(size), "{text}");
        }
    }

    #[test]
    fn fractions_of_a_unit_are_bytes() {
        assert_eq!(parse("1.5G"), Ok(3 << 29));
        assert_eq!(parse("0.1k"), Ok(102));
    }

    #[test]
    fn hexadecimal_is_bytes() {
        assert_eq!(parse("0x1F"), Ok(31));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "M", "-1", "+1", "1Z", "1MB", "1 M", "0x", "0x-1", "0x1k", "1.5", ".5G", "1e3"] {
            assert_eq!(parse(text), Err(SizeError::Invalid), "{text}");
        }
    }

    #[test]
    fn what_no_file_can_have_is_too_large() {
        for text in ["8E", "16E", "9223372036854775808", "99999999999999999999", "0xffffffffffffffff"] {
            assert_eq!(parse(text), Err(SizeError::TooLarge), "{text}");
        }
        assert_eq!(parse("9223372036854775807"), Ok(i64::MAX as u64));
    }

    #[test]
    fn sizes_are_shown_with_three_digits() {
        for (size, text) in [(0, "0 B"), (1000, "0.977 KiB"), (200_704, "196 KiB"), (1 << 30, "1 GiB")] {
            assert_eq!(human(size), text);
        }
        assert_eq!(human(1_610_612_736), "1.5 GiB");
    }
}
