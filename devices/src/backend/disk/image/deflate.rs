//! Compresses clusters for qcow2. Readers have a window of 4 KiB only, so no match may reach further back than that; a compressor
//! that cannot be told so is reset every 4 KiB.

use flate2::{Compress, Compression, FlushCompress, Status};

/// What readers remember of what they have decompressed: QEMU's `inflateInit2` with -12.
const WINDOW: usize = 1 << 12;

/// `bytes` as raw deflate (RFC 1951); `None` if that is no shorter.
pub(super) fn deflate(bytes: &[u8]) -> Option<Vec<u8>> {
    // Raw deflate has no header of zlib.
    let mut compress = Compress::new(Compression::default(), false);
    let mut out = Vec::with_capacity(bytes.len());
    let parts = bytes.len().div_ceil(WINDOW);
    for (number, part) in bytes.chunks(WINDOW).enumerate() {
        let last = number + 1 == parts;
        // A full flush also forgets what came before.
        let flush = if last { FlushCompress::Finish } else { FlushCompress::Full };
        let before = compress.total_in();
        let status = compress.compress_vec(part, &mut out, flush).ok()?;
        let taken = compress.total_in() - before == part.len() as u64;
        // It writes into the room that there is and no more: where it fills that up, nothing is gained.
        if !taken || out.len() >= bytes.len() || (last && status != Status::StreamEnd) {
            return None;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn what_was_compressed_comes_back() {
        let text: Vec<u8> = (0..65536_u32).map(|n| (n / 7 % 251) as u8).collect();
        let compressed = deflate(&text).unwrap();
        let mut back = Vec::new();
        flate2::read::DeflateDecoder::new(&compressed[..]).read_to_end(&mut back).unwrap();
        assert!(back == text && compressed.len() < text.len() / 4);
    }

    #[test]
    fn noise_is_left_as_it_is() {
        let mut state = 1_u32;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        assert!(deflate(&noise.take(65536).collect::<Vec<u8>>()).is_none());
    }
}
