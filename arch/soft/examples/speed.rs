use hvrun_soft::{Cpu, Machine, Perms};
fn main() {
    let mut ram = vec![0u64; (0x100000 + 4096) / 8];
    let host = (ram.as_mut_ptr() as usize).next_multiple_of(4096) as *mut u8;
    // x0=count; loop: add x1,x1,x0; eor x2,x1,x3,lsl #3; subs x0,x0,#1; b.ne
    let n: u64 = 100_000_000;
    let prog: [u32; 6] = [0x8b00_0021, 0xca03_0c22, 0xf100_0400, 0x54ff_ffa1, 0xd400_0002, 0];
    for (i, w) in prog.iter().enumerate() { unsafe { host.cast::<u32>().add(i).write(*w) } }
    let m = Machine::new(40);
    unsafe { m.map(0x4000_0000, host, 0x100000, Perms::ALL).unwrap() };
    let mut c = Cpu::new(m);
    c.set_pc(0x4000_0000); c.set_x(0, n);
    let t = std::time::Instant::now();
    println!("{:?}", c.run());
    let d = t.elapsed();
    println!("{:.0} MIPS", 4.0 * n as f64 / d.as_secs_f64() / 1e6);
}
