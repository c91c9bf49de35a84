//! A record of a card's traffic in a file that Wireshark and tcpdump read: the classic pcap format (libpcap, pcap-savefile(5)).
//! Frames are recorded as the guest has them, so those that are cut or summed later show up large and without checksums.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use vm_memory::VolatileSlice;

/// Magic number of a file with timestamps in microseconds, in the writer's byte order, and the format's version.
const MAGIC: u32 = 0xa1b2_c3d4;
const VERSION: [u16; 2] = [2, 4];
/// LINKTYPE_ETHERNET.
const ETHERNET: u32 = 1;
/// Most bytes of a frame that are recorded: all of any frame, and what Wireshark takes.
const SNAP_LEN: usize = 262_144;
/// Largest file. A guest decides how much it sends, but not how much of the host's disk that fills.
const MAX_FILE: u64 = 4 << 30;

/// The file. After its first error it is closed.
#[derive(Debug)]
pub(super) struct Pcap {
    path: PathBuf,
    /// `None` after an error.
    file: Option<BufWriter<File>>,
    written: u64,
    most: u64,
    /// One record, reused.
    record: Vec<u8>,
}

impl Pcap {
    /// Creates the file, or empties it.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let mut file = BufWriter::with_capacity(1 << 16, File::create(path)?);
        let mut header = Vec::with_capacity(24);
        header.extend(MAGIC.to_le_bytes());
        VERSION.iter().for_each(|half| header.extend(half.to_le_bytes()));
        // The time zone's offset and the timestamps' accuracy are always 0.
        header.extend([0; 8]);
        header.extend((SNAP_LEN as u32).to_le_bytes());
        header.extend(ETHERNET.to_le_bytes());
        file.write_all(&header)?;
        file.flush()?;
        let written = header.len() as u64;
        Ok(Pcap { path: path.to_owned(), file: Some(file), written, most: MAX_FILE, record: Vec::new() })
    }

    /// Records the frame of `len` bytes that begins in `slices`.
    pub(super) fn record(&mut self, slices: &[VolatileSlice<'_>], len: usize) {
        let Some(file) = &mut self.file else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let kept = len.min(SNAP_LEN);
        let fields = [now.as_secs() as u32, now.subsec_micros(), kept as u32, len as u32];
        self.record.clear();
        fields.iter().for_each(|field| self.record.extend(field.to_le_bytes()));
        let start = self.record.len();
        self.record.resize(start + kept, 0);
        super::header::copy_out(slices, &mut self.record[start..]);
        self.written += self.record.len() as u64;
        if self.written > self.most {
            self.stop(&format!("it has reached {} bytes", self.most));
        } else if let Err(error) = file.write_all(&self.record) {
            self.stop(&error.to_string());
        }
    }

    /// Lets the file have what was recorded so far.
    pub(super) fn flush(&mut self) {
        if let Some(Err(error)) = self.file.as_mut().map(Write::flush) {
            self.stop(&error.to_string());
        }
    }

    fn stop(&mut self, why: &str) {
        log::warn!("the record of network traffic {} ends here: {why}", self.path.display());
        if let Some(file) = self.file.take() {
            // Half a record would make the file unreadable at its end; what the buffer holds are whole ones unless writing failed.
            let _ = file.into_inner();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(pcap: &mut Pcap, frame: &mut [u8]) {
        let len = frame.len();
        pcap.record(&[VolatileSlice::from(frame)], len);
    }

    #[test]
    fn a_record_has_a_header_and_the_frame() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pcap");
        let mut pcap = Pcap::create(&path).unwrap();
        record(&mut pcap, &mut [7; 20]);
        pcap.flush();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes[..8], [0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0]);
        assert_eq!(bytes[20..24], [1, 0, 0, 0]);
        assert_eq!(bytes[32..40], [20, 0, 0, 0, 20, 0, 0, 0]);
        assert_eq!(bytes[40..], [7; 20]);
    }

    #[test]
    fn a_file_ends_before_it_grows_beyond_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pcap");
        let mut pcap = Pcap { most: 100, ..Pcap::create(&path).unwrap() };
        for _ in 0..10 {
            record(&mut pcap, &mut [7; 20]);
        }
        pcap.flush();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 24 + 2 * 36);
    }

    #[test]
    fn a_full_disk_ends_the_record_and_nothing_else() {
        let mut pcap = Pcap {
            path: "/dev/full".into(),
            file: File::create("/dev/full").ok().map(BufWriter::new),
            written: 0,
            most: MAX_FILE,
            record: Vec::new(),
        };
        record(&mut pcap, &mut [7; 20]);
        pcap.flush();
        record(&mut pcap, &mut [7; 20]);
        assert!(pcap.file.is_none());
    }
}
