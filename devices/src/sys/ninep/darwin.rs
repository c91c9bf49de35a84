//! The numbers of macOS and what they are to a Linux guest, as pure tables, so that they are tested on any host.
//!
//! Sources: XNU `bsd/sys/errno.h`, `bsd/sys/xattr.h`; Linux `asm-generic/errno.h`, `linux/xattr.h`.

use crate::backend::ninep::{dotl, xattr_flag};

/// The number that Linux has for an error of macOS; EIO for those it has none for.
pub(crate) fn wire_errno(raw: i32) -> u32 {
    /// EIO, the answer for everything unknown.
    const EIO: u32 = 5;
    let Ok(raw) = u32::try_from(raw) else { return EIO };
    match raw {
        11 => 35,            // EDEADLK
        1..=34 => raw,       // EPERM to ERANGE
        35 => 11,            // EAGAIN
        36 => 115,           // EINPROGRESS
        37 => 114,           // EALREADY
        38..=44 => raw + 50, // ENOTSOCK to ESOCKTNOSUPPORT: 88 to 94
        45 | 102 => 95,      // ENOTSUP, EOPNOTSUPP
        46..=61 => raw + 50, // EPFNOSUPPORT to ECONNREFUSED: 96 to 111
        62 => 40,            // ELOOP
        63 => 36,            // ENAMETOOLONG
        64 => 112,           // EHOSTDOWN
        65 => 113,           // EHOSTUNREACH
        66 => 39,            // ENOTEMPTY
        67 => 11,            // EPROCLIM: EAGAIN
        68 => 87,            // EUSERS
        69 => 122,           // EDQUOT
        70 => 116,           // ESTALE
        71 => 66,            // EREMOTE
        77 => 37,            // ENOLCK
        78 => 38,            // ENOSYS
        79 => 22,            // EFTYPE: EINVAL
        80 | 81 | 107 => 13, // EAUTH, ENEEDAUTH, ENOTCAPABLE: EACCES
        84 => 75,            // EOVERFLOW
        89 => 125,           // ECANCELED
        90 => 43,            // EIDRM
        91 => 42,            // ENOMSG
        92 => 84,            // EILSEQ: a name that is not UTF-8
        93 => 61,            // ENOATTR: ENODATA
        94 => 74,            // EBADMSG
        95 => 72,            // EMULTIHOP
        96 => 61,            // ENODATA
        97 => 67,            // ENOLINK
        98 => 63,            // ENOSR
        99 => 60,            // ENOSTR
        100 => 71,           // EPROTO
        101 => 62,           // ETIME
        104 => 131,          // ENOTRECOVERABLE
        105 => 130,          // EOWNERDEAD
        106 => 105,          // EQFULL: ENOBUFS
        _ => EIO,
    }
}

/// Open flags of macOS (`bsd/sys/fcntl.h`) for those of Tlopen that concern the host; the rest is left out on purpose:
/// direct access, access times, close-on-exec and terminals are the server's business, offsets are explicit.
pub(crate) fn open_flags(dotl: u32) -> u32 {
    const TABLE: [(u32, u32); 5] = [
        (dotl::TRUNC, 0x400),
        (dotl::APPEND, 0x8),
        (dotl::DSYNC, 0x40_0000),
        (dotl::DIRECTORY, 0x10_0000),
        (dotl::SYNC, 0x80),
    ];
    let access = dotl & dotl::ACCMODE;
    TABLE.iter().filter(|(wire, _)| dotl & wire != 0).fold(access, |flags, (_, host)| flags | host)
}

/// Flags of setxattr(2): CREATE and REPLACE have other numbers.
pub(crate) fn xattr_flags(wire: u32) -> u32 {
    const XATTR_CREATE: u32 = 2;
    const XATTR_REPLACE: u32 = 4;
    let create = if wire & xattr_flag::CREATE != 0 { XATTR_CREATE } else { 0 };
    let replace = if wire & xattr_flag::REPLACE != 0 { XATTR_REPLACE } else { 0 };
    create | replace
}

/// Flags of renameatx_np(2) for those of Linux' renameat2; `None` for what macOS cannot do (WHITEOUT).
#[cfg(test)]
pub(crate) fn rename_flags(linux: u32) -> Option<u32> {
    const RENAME_SWAP: u32 = 2;
    const RENAME_EXCL: u32 = 4;
    match linux {
        0 => Some(0),
        1 => Some(RENAME_EXCL),
        2 => Some(RENAME_SWAP),
        _ => None,
    }
}

/// Whether a guest may know of an extended attribute. The namespace of macOS is flat; Linux has only `user.` for these,
/// and `com.apple.quarantine` and its like are none of the guest's business.
pub(crate) fn xattr_is_visible(name: &[u8]) -> bool {
    name.starts_with(b"user.")
}

/// Longest name of an extended attribute (`XATTR_MAXNAMELEN`); Linux allows 255.
pub(crate) const XATTR_NAME_MAX: usize = 127;

/// Splits a 32-bit `dev_t` of macOS: 8 bits major, 24 bits minor.
pub(crate) fn split_device(device: u32) -> (u32, u32) {
    (device >> 24, device & 0xff_ffff)
}

/// The inverse of [`split_device`]; `None` if the numbers do not fit.
#[cfg(test)]
pub(crate) fn join_device(major: u32, minor: u32) -> Option<u32> {
    (major <= 0xff && minor <= 0xff_ffff).then_some((major << 24) | minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlock_and_again_change_places() {
        assert_eq!((wire_errno(11), wire_errno(35)), (35, 11));
    }

    #[test]
    fn errors_that_unix_always_had_stay_as_they_are() {
        assert!((1..=34).filter(|n| *n != 11).all(|n| wire_errno(n) == n as u32));
    }

    #[test]
    fn network_errors_get_the_numbers_of_linux() {
        let pairs = [(36, 115), (38, 88), (44, 94), (46, 96), (55, 105), (60, 110), (61, 111), (65, 113)];
        assert!(pairs.iter().all(|&(mac, linux)| wire_errno(mac) == linux));
    }

    #[test]
    fn file_errors_get_the_numbers_of_linux() {
        let pairs = [
            (45, 95),
            (62, 40),
            (63, 36),
            (66, 39),
            (69, 122),
            (70, 116),
            (77, 37),
            (78, 38),
            (84, 75),
            (92, 84),
        ];
        assert!(pairs.iter().all(|&(mac, linux)| wire_errno(mac) == linux));
    }

    #[test]
    fn a_missing_attribute_is_no_data() {
        assert_eq!((wire_errno(93), wire_errno(96)), (61, 61));
    }

    #[test]
    fn operation_not_supported_is_not_network_reset() {
        assert_eq!(wire_errno(102), 95);
    }

    #[test]
    fn what_linux_has_no_number_for_is_an_io_error() {
        assert_eq!((wire_errno(0), wire_errno(-1), wire_errno(82), wire_errno(1000)), (5, 5, 5, 5));
    }

    #[test]
    fn open_flags_are_translated_one_by_one() {
        let wire = 0o2 | 0o1000 | 0o2000 | 0o10000 | 0o200000 | 0o4000000;
        assert_eq!(open_flags(wire), 0x2 | 0x400 | 0x8 | 0x40_0000 | 0x10_0000 | 0x80);
    }

    #[test]
    fn direct_and_noatime_and_cloexec_are_left_out() {
        assert_eq!(open_flags(0o40000 | 0o1000000 | 0o2000000), 0);
    }

    #[test]
    fn create_and_replace_of_xattrs_have_their_own_numbers() {
        assert_eq!((xattr_flags(1), xattr_flags(2), xattr_flags(0)), (2, 4, 0));
    }

    #[test]
    fn noreplace_and_exchange_are_excl_and_swap() {
        assert_eq!((rename_flags(1), rename_flags(2), rename_flags(4)), (Some(4), Some(2), None));
    }

    #[test]
    fn attributes_of_apple_are_hidden() {
        let visible = |name: &[u8]| xattr_is_visible(name);
        assert_eq!(
            (visible(b"user.a"), visible(b"com.apple.quarantine"), visible(b"system.posix_acl_access")),
            (true, false, false)
        );
    }

    #[test]
    fn device_numbers_have_eight_bits_of_major() {
        assert_eq!(
            (split_device(0x1000_0003), join_device(0x10, 3), join_device(256, 0)),
            ((0x10, 3), Some(0x1000_0003), None)
        );
    }

    #[test]
    fn the_longest_attribute_name_is_shorter_than_on_linux() {
        assert_eq!(XATTR_NAME_MAX, 127);
    }
}
