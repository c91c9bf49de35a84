//! Guests of a few instructions: an assembler just large enough for them, and the arm64 `Image` header around the code
//! (Linux, Documentation/arm64/booting.rst). They run with the MMU off and end by PSCI.

use anyhow::{Context, Result};
use std::path::PathBuf;
use tempfile::TempDir;

/// The PL011's registers (ARM DDI 0183, 3.2): data, flags, line control, control.
const UART: u64 = 0x0900_0000;
const UARTDR: u32 = 0x00;
const UARTFR: u32 = 0x18;
const UARTLCR_H: u32 = 0x2C;
const UARTCR: u32 = 0x30;
/// UARTFR.RXFE: nothing to read.
const RXFE_BIT: u32 = 4;

/// PSCI 1.1 function ids (ARM DEN 0022, 5.1).
const PSCI_SYSTEM_OFF: u32 = 0x8400_0008;
const PSCI_SYSTEM_RESET: u32 = 0x8400_0009;

/// Length of the `Image` header; the code follows it.
const HEADER: usize = 64;
/// Where in the image the exception vectors lie. VBAR_EL1 wants a multiple of 2 KiB, and images are loaded at a multiple of 2 MiB.
const VECTORS: usize = 0x1000;
/// Distance between two vectors, and their number (Arm ARM D1.3.1).
const VECTOR_SIZE: usize = 0x80;
const VECTOR_COUNT: usize = 16;
/// The memory that each of these images claims.
const IMAGE_SIZE: usize = 0x2000;

// Registers used by the code below: the UART's base is kept in X0, the rest are scratch.
const X0: u32 = 0;
const X1: u32 = 1;
const X2: u32 = 2;
const X3: u32 = 3;

/// A guest program, instruction by instruction.
#[derive(Debug, Clone)]
pub struct Program {
    words: Vec<u32>,
}

impl Program {
    /// A program that has switched the UART on and pointed VBAR_EL1 at the image's vectors.
    pub fn new() -> Self {
        let mut program = Program { words: Vec::new() };
        program.set_up_uart();
        // ADR X1, image + VECTORS; MSR VBAR_EL1, X1; ISB
        let here = HEADER + program.words.len() * 4;
        program.push(adr(X1, (VECTORS - here) as u32)).push(0xD518_C000 | X1).push(0xD503_3FDF)
    }

    fn set_up_uart(&mut self) {
        self.load(X0, UART);
        self.store_immediate(UARTLCR_H, 0x70); // 8 bits, FIFOs on
        self.store_immediate(UARTCR, 0x301); // UARTEN, TXE, RXE
    }

    fn store_immediate(&mut self, register: u32, value: u16) {
        self.words.extend([movz(X1, value, 0), str_w(X1, X0, register)]);
    }

    fn load(&mut self, register: u32, value: u64) {
        self.words.push(movz(register, value as u16, 0));
        for half in 1..4_u32 {
            let part = (value >> (16 * half)) as u16;
            if part != 0 {
                self.words.push(movk(register, part, half));
            }
        }
    }

    fn push(mut self, word: u32) -> Self {
        self.words.push(word);
        self
    }

    /// Writes `text` to the UART.
    #[must_use]
    pub fn print(mut self, text: &str) -> Self {
        for byte in text.bytes() {
            self.store_immediate(UARTDR, u16::from(byte));
        }
        self
    }

    /// Spins until the virtual counter has gone on by `milliseconds`.
    #[must_use]
    pub fn delay(mut self, milliseconds: u16) -> Self {
        self.words.push(0xD53B_E000 | X1); // MRS X1, CNTFRQ_EL0
        self.load(X2, u64::from(milliseconds));
        self.words.push(0x9B02_7C21); // MUL X1, X1, X2
        self.load(X2, 1000);
        self.words.push(0x9AC2_0821); // UDIV X1, X1, X2
        self.words.push(0xD53B_E040 | X2); // MRS X2, CNTVCT_EL0
        self.words.push(0x8B02_0021); // ADD X1, X1, X2
        self.words.push(0xD53B_E040 | X2); // again: MRS X2, CNTVCT_EL0
        self.words.push(0xEB01_005F); // CMP X2, X1
        self.words.push(0x5400_0003 | (((-2_i32) as u32 & 0x7_FFFF) << 5)); // B.LO again
        self
    }

    /// Sends back every byte that the UART receives, until `last` has been sent back.
    #[must_use]
    pub fn echo_until(mut self, last: u8) -> Self {
        self.words.extend([
            ldr_w(X2, X0, UARTFR),
            tbnz(X2, RXFE_BIT, -1),
            ldr_w(X2, X0, UARTDR),
            0x5300_1C00 | (X2 << 5) | X2, // UXTB W2, W2
            str_w(X2, X0, UARTDR),
            0x5100_0000 | (u32::from(last) << 10) | (X2 << 5) | X3, // SUB W3, W2, #last
            0x3500_0000 | (((-6_i32) as u32 & 0x7_FFFF) << 5) | X3, // CBNZ W3, -6
        ]);
        self
    }

    /// Ends the machine (PSCI SYSTEM_OFF).
    #[must_use]
    pub fn power_off(self) -> Self {
        self.psci(PSCI_SYSTEM_OFF)
    }

    /// Resets the machine (PSCI SYSTEM_RESET).
    #[must_use]
    pub fn reset(self) -> Self {
        self.psci(PSCI_SYSTEM_RESET)
    }

    fn psci(mut self, function: u32) -> Self {
        self.load(X0, u64::from(function));
        self.push(0xD400_0002).spin() // HVC #0
    }

    /// Stays where it is, using the CPU.
    #[must_use]
    pub fn spin(self) -> Self {
        self.push(0x1400_0000) // B .
    }

    /// Sleeps for ever.
    #[must_use]
    pub fn sleep(self) -> Self {
        self.push(0xD503_207F).push(0x17FF_FFFF) // WFI; B -1
    }

    /// Jumps to an address.
    #[must_use]
    pub fn jump(mut self, address: u64) -> Self {
        self.load(X1, address);
        self.push(0xD61F_0000 | (X1 << 5)) // BR X1
    }

    /// Reads 64 bits from an address.
    #[must_use]
    pub fn read(mut self, address: u64) -> Self {
        self.load(X1, address);
        self.push(0xF940_0000 | (X1 << 5) | X2) // LDR X2, [X1]
    }

    /// Points VBAR_EL1 elsewhere.
    #[must_use]
    pub fn vectors_at(mut self, address: u64) -> Self {
        self.load(X1, address);
        self.push(0xD518_C000 | X1).push(0xD503_3FDF) // MSR VBAR_EL1, X1; ISB
    }

    /// Any instruction at all.
    #[must_use]
    pub fn word(self, word: u32) -> Self {
        self.push(word)
    }

    /// The image: the header, this program, and vectors that print `EXC` and the two hexadecimal digits of ESR_EL1.EC, and power off.
    pub fn image(&self) -> Vec<u8> {
        let mut image = header(IMAGE_SIZE as u64, 0b1010); // little-endian, 4K pages, anywhere in memory
        for word in &self.words {
            image.extend(word.to_le_bytes());
        }
        assert!(image.len() <= VECTORS, "the program runs into the vectors");
        image.resize(VECTORS, 0);
        let handler = report_exception();
        for vector in 0..VECTOR_COUNT {
            let at = VECTOR_SIZE * vector;
            let distance = (VECTOR_SIZE * VECTOR_COUNT - at) / 4;
            image.extend((0x1400_0000 | distance as u32).to_le_bytes()); // B handler
            image.resize(VECTORS + at + VECTOR_SIZE, 0);
        }
        for word in handler {
            image.extend(word.to_le_bytes());
        }
        assert!(image.len() <= IMAGE_SIZE, "the handler runs out of the image");
        image.resize(IMAGE_SIZE, 0);
        image
    }

    /// The image as a file, which lives as long as the returned folder.
    pub fn file(&self) -> Result<(TempDir, PathBuf)> {
        file(&self.image())
    }
}

impl Default for Program {
    fn default() -> Self {
        Self::new()
    }
}

/// Puts bytes into a file named `kernel`, which lives as long as the returned folder.
pub fn file(bytes: &[u8]) -> Result<(TempDir, PathBuf)> {
    let dir = TempDir::new().context("no temporary folder")?;
    let path = dir.path().join("kernel");
    std::fs::write(&path, bytes)?;
    Ok((dir, path))
}

/// The arm64 `Image` header, beginning with a jump over itself.
pub fn header(image_size: u64, flags: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER);
    bytes.extend((0x1400_0000 | (HEADER as u32 / 4)).to_le_bytes()); // code0: B HEADER
    bytes.extend(0_u32.to_le_bytes()); // code1
    bytes.extend(0_u64.to_le_bytes()); // text_offset
    bytes.extend(image_size.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend([0; 24]); // res2, res3, res4
    bytes.extend(b"ARM\x64");
    bytes.extend(0_u32.to_le_bytes()); // res5: no PE header
    bytes
}

fn report_exception() -> Vec<u32> {
    let mut program = Program { words: Vec::new() };
    program.set_up_uart();
    let mut program = program.print("EXC ");
    // MRS X2, ESR_EL1; the two digits of EC, bits 31:26.
    program.words.push(0xD538_5200 | X2);
    program.words.push(0xD35A_FC00 | (X2 << 5) | X2); // LSR X2, X2, #26
    program.words.push(0xD344_FC00 | (X2 << 5) | X1); // LSR X1, X2, #4
    program.print_digit();
    program.words.push(0x9240_0C00 | (X2 << 5) | X1); // AND X1, X2, #15
    program.print_digit();
    program.print("\n").power_off().words
}

impl Program {
    /// Prints the hexadecimal digit in X1.
    fn print_digit(&mut self) {
        self.words.extend([
            0x1100_C021,                // ADD W1, W1, #'0'
            0x7100_E43F,                // CMP W1, #'9'
            0x5400_0000 | (2 << 5) | 9, // B.LS +2
            0x1100_9C21,                // ADD W1, W1, #('a' - '9' - 1)
            str_w(X1, X0, UARTDR),
        ]);
    }
}

// Encodings: Arm ARM C6.2, each under the instruction's name.

fn movz(register: u32, value: u16, half: u32) -> u32 {
    0xD280_0000 | (half << 21) | (u32::from(value) << 5) | register
}

fn movk(register: u32, value: u16, half: u32) -> u32 {
    0xF280_0000 | (half << 21) | (u32::from(value) << 5) | register
}

fn str_w(register: u32, base: u32, offset: u32) -> u32 {
    0xB900_0000 | ((offset / 4) << 10) | (base << 5) | register
}

fn ldr_w(register: u32, base: u32, offset: u32) -> u32 {
    0xB940_0000 | ((offset / 4) << 10) | (base << 5) | register
}

fn adr(register: u32, offset: u32) -> u32 {
    0x1000_0000 | ((offset & 3) << 29) | (((offset >> 2) & 0x7_FFFF) << 5) | register
}

fn tbnz(register: u32, bit: u32, words: i32) -> u32 {
    0x3700_0000 | (bit << 19) | ((words as u32 & 0x3FFF) << 5) | register
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_has_the_magic_where_linux_puts_it() {
        let image = Program::new().power_off().image();
        assert_eq!(&image[56..60], b"ARM\x64");
    }

    #[test]
    fn vectors_lie_at_the_address_that_the_program_writes_to_vbar() {
        // ADR is the third instruction from the end of the prologue.
        let program = Program::new();
        let at = program.words.len() - 3;
        let immediate = (program.words[at] >> 5) & 0x7_FFFF;
        assert_eq!(
            HEADER + at * 4 + (immediate as usize) * 4 + (program.words[at] as usize >> 29 & 3),
            VECTORS
        );
    }
}
