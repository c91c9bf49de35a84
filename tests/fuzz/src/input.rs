//! Taking an input apart, and making one. Every sequence of bytes is an input; what is missing at its end is nothing.

/// Length of an [`Op`].
pub const RECORD: usize = 8;

/// The bytes that are left of an input.
#[derive(Debug)]
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// Up to `len` bytes.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        head
    }

    /// A byte, 0 at the end.
    pub fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or_default()
    }

    /// The next operation.
    pub fn op(&mut self) -> Option<Op> {
        let record: [u8; RECORD] = self.bytes(RECORD).try_into().ok()?;
        let [code, a, b0, b1, c0, c1, c2, c3] = record;
        Some(Op { code, a, b: u16::from_le_bytes([b0, b1]), c: u32::from_le_bytes([c0, c1, c2, c3]) })
    }
}

/// One thing that a guest does: which, and three numbers whose meaning that says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Op {
    pub code: u8,
    pub a: u8,
    pub b: u16,
    pub c: u32,
}

impl Op {
    /// An operation of [`Op::code`] `code`.
    pub fn new(code: u8, a: u8, b: u16, c: u32) -> Self {
        Op { code, a, b, c }
    }

    /// How many bytes it accesses: 1, 2, 4 or 8, by `a`.
    pub fn width(self) -> usize {
        1 << (self.a & 3)
    }

    /// What it writes: `c`, and behind it its complement.
    pub fn data(self) -> [u8; 8] {
        (u64::from(!self.c) << 32 | u64::from(self.c)).to_le_bytes()
    }

    /// The bytes that [`Input::op`] reads.
    pub fn bytes(self) -> [u8; RECORD] {
        let ([b0, b1], [c0, c1, c2, c3]) = (self.b.to_le_bytes(), self.c.to_le_bytes());
        [self.code, self.a, b0, b1, c0, c1, c2, c3]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_read_as_it_was_written() {
        let op = Op::new(1, 2, 0x0403, 0x0807_0605);
        assert_eq!(Input(&op.bytes()).op(), Some(op));
    }

    #[test]
    fn half_an_operation_is_none() {
        assert_eq!(Input(&[0; RECORD - 1]).op(), None);
    }
}
