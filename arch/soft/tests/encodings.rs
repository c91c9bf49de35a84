//! Which instruction words exist: our decoder against `exarmo-aarch64`, which is generated from Arm's machine-readable
//! specification. What the instructions do is not compared here.
//!
//! That specification knows every extension to date, so the extensions that this CPU does not have are listed by the names
//! of their encodings: words of those must not decode.

use std::collections::BTreeMap;

use exarmo_aarch64::{Encoding, Instruction, Offset, Operand, Writeback, decode_word};
use hvrun_soft::decode::decode;
use hvrun_soft::insn::{Address, IndexMode, Insn};

/// Encodings of extensions that this CPU does not have: extension, start and end of the encoding's name, which is the
/// mnemonic and the instruction class of Arm's index.
const ABSENT_BASE: &[(&str, &str, &str)] = &[
    ("FEAT_PAuth", "", "64pDp1src"),
    ("FEAT_PAuth", "", "64zDp1src"),
    ("FEAT_PAuth", "Pacga", "Dp2src"),
    ("FEAT_PAuth", "", "LdstPac"),
    ("FEAT_PAuth", "Blra", "BranchReg"),
    ("FEAT_PAuth", "Bra", "BranchReg"),
    ("FEAT_PAuth", "Reta", "BranchReg"),
    ("FEAT_PAuth", "Ereta", "BranchReg"),
    ("FEAT_PAuth_LR", "Aut", "Dp1srcImm"),
    ("FEAT_PAuth_LR", "", "64lrDp1src"),
    ("FEAT_PAuth_LR", "Aut", "64lrrDp1src"),
    ("FEAT_PAuth_LR", "Reta", "Miscbranch"),
    ("FEAT_MTE", "", "AddsubImmtags"),
    ("FEAT_MTE", "", "Ldsttags"),
    ("FEAT_MTE", "Stgp", ""),
    ("FEAT_MTE", "Gmi", ""),
    ("FEAT_MTE", "Irg", ""),
    ("FEAT_MTE", "Subp64", ""),
    ("FEAT_MTE", "Subps64", ""),
    ("FEAT_MTE", "Cmpp", ""),
    ("FEAT_CSSC", "", "MinmaxImm"),
    ("FEAT_CSSC", "Smax", "Dp2src"),
    ("FEAT_CSSC", "Smin", "Dp2src"),
    ("FEAT_CSSC", "Umax", "Dp2src"),
    ("FEAT_CSSC", "Umin", "Dp2src"),
    ("FEAT_CSSC", "Abs", "Dp1src"),
    ("FEAT_CSSC", "Cnt", "Dp1src"),
    ("FEAT_CSSC", "Ctz", "Dp1src"),
    ("FEAT_CPA", "", "AddsubPt"),
    ("FEAT_CPA", "Maddpt", ""),
    ("FEAT_CPA", "Msubpt", ""),
    ("FEAT_FlagM", "", "Rmif"),
    ("FEAT_FlagM", "Setf", ""),
    ("FEAT_FlagM", "", "MPstate"),
    ("FEAT_HBC", "BcOnly", "Condbranch"),
    ("FEAT_CMPBR", "Cb", "Regs"),
    ("FEAT_CMPBR", "Cb", "Imm"),
    ("compare and fault", "Cflt", ""),
    ("compare and fault", "Tflt", ""),
    ("compare and fault", "Flt", "Exception"),
    ("Debug state", "Dcps", ""),
    ("Debug state", "Drps", ""),
    ("FEAT_TEV", "Tchange", ""),
    ("FEAT_TEV", "Tenter", ""),
    ("FEAT_TEV", "Texit", ""),
    ("FEAT_SME", "Smstart", ""),
    ("FEAT_SME", "Smstop", ""),
    ("FEAT_XS", "DsbBon", "Barriers"),
    ("FEAT_SB", "SbOnly", "Barriers"),
    ("FEAT_WFxT", "Wfet", ""),
    ("FEAT_WFxT", "Wfit", ""),
    ("extended hints", "", "Extendedhint"),
    ("FEAT_D128", "", "Syspairinstrs"),
    ("FEAT_D128", "", "Systemmovepr"),
    ("FEAT_LSE128, FEAT_THE", "", "Memop128"),
    ("FEAT_THE", "Rcw", ""),
    ("FEAT_LSUI", "", "MemopUnpriv"),
    ("FEAT_LSUI", "", "LdstexclrUnpriv"),
    ("FEAT_LSUI", "", "ComswapUnpriv"),
    ("FEAT_LSUI", "", "ComswapprUnpriv"),
    ("FEAT_LSUI", "Ldtnp", ""),
    ("FEAT_LSUI", "Ldtp", ""),
    ("FEAT_LSUI", "Sttnp", ""),
    ("FEAT_LSUI", "Sttp", ""),
    ("FEAT_LS64", "", "64b64lMemop"),
    ("FEAT_LS64", "", "64bv64Memop"),
    ("FEAT_LS64", "", "64bv064Memop"),
    ("FEAT_LRCPC", "Ldapr", "Memop"),
    ("FEAT_LRCPC2", "", "LdapstlUnscaled"),
    ("FEAT_LRCPC3", "", "LdapstlSimd"),
    ("FEAT_LRCPC3", "", "LdapstlWriteback"),
    ("FEAT_LRCPC3", "", "Ldiappstilp"),
    ("FEAT_LRCPC3", "Ldap1", ""),
    ("FEAT_LRCPC3", "Stl1", ""),
    ("FEAT_MOPS", "", "Memcms"),
    ("FEAT_MOPS", "", "MemsetGo"),
    ("FEAT_GCS", "", "LdstGcs"),
    ("FEAT_LSFE", "Ldf", ""),
    ("FEAT_LSFE", "Stf", ""),
    ("FEAT_LSFE", "Ldbf", ""),
    ("FEAT_LSFE", "Stbf", ""),
];

/// As [`ABSENT_BASE`], for data processing on the FP and SIMD registers.
const ABSENT_FP_SIMD: &[(&str, &str, &str)] = &[
    ("FEAT_FP16", "", "fp16Only"),
    ("FEAT_FP16", "", "fp16R"),
    ("FEAT_FP16", "", "fp16Fz"),
    ("FEAT_FP16", "", "HFloatdp1"),
    ("FEAT_FP16", "", "HFloatdp2"),
    ("FEAT_FP16", "", "HFloatdp3"),
    ("FEAT_FP16", "", "HFloatccmp"),
    ("FEAT_FP16", "", "HFloatcmp"),
    ("FEAT_FP16", "", "HzFloatcmp"),
    ("FEAT_FP16", "", "HFloatsel"),
    ("FEAT_FP16", "", "HFloatimm"),
    ("FEAT_FP16", "", "hFloat2int"),
    ("FEAT_FP16", "", "hFloat2fix"),
    ("FEAT_FP16", "FmovH", "Float2int"),
    ("FEAT_FP16", "ScvtfH", ""),
    ("FEAT_FP16", "UcvtfH", ""),
    ("FEAT_FP16", "", "AsisdpairOnlyH"),
    ("FEAT_FP16", "", "AsimdallOnlyH"),
    ("FEAT_FP16", "", "elemRhH"),
    ("FEAT_FP16", "", "AsimdimmHH"),
    ("FEAT_FPRCVT", "", "Sisd32d"),
    ("FEAT_FPRCVT", "", "Sisd32h"),
    ("FEAT_FPRCVT", "", "Sisd64h"),
    ("FEAT_FPRCVT", "", "Sisd64s"),
    ("FEAT_RDM", "Sqrdmlah", ""),
    ("FEAT_RDM", "Sqrdmlsh", ""),
    ("FEAT_DotProd", "Sdot", ""),
    ("FEAT_DotProd", "Udot", ""),
    ("FEAT_I8MM", "Sudot", ""),
    ("FEAT_I8MM", "Usdot", ""),
    ("FEAT_I8MM", "Smmla", ""),
    ("FEAT_I8MM", "Ummla", ""),
    ("FEAT_I8MM", "Usmmla", ""),
    ("FEAT_FCMA", "Fcadd", ""),
    ("FEAT_FCMA", "Fcmla", ""),
    ("FEAT_FHM, FEAT_FP8FMA", "Fmlal", ""),
    ("FEAT_FHM", "Fmlsl", ""),
    ("FEAT_BF16, FEAT_FP8", "Bf", ""),
    ("FEAT_FP8", "F1cvtl", ""),
    ("FEAT_FP8", "F2cvtl", ""),
    ("FEAT_FP8", "Fcvtn", "Asimdsame2D"),
    ("FEAT_FP8", "Fcvtn", "Asimdsame2H"),
    ("FEAT_FP8", "Fcvtn", "Asimdsame2H2"),
    ("FEAT_FP8", "Fscale", ""),
    ("FEAT_FP8DOT2, FEAT_FP8DOT4", "Fdot", ""),
    ("FEAT_F8F16MM and others", "Fmmla", ""),
    ("FEAT_FAMINMAX", "Famax", ""),
    ("FEAT_FAMINMAX", "Famin", ""),
    ("FEAT_LUT", "Luti", ""),
    ("FEAT_JSCVT", "Fjcvtzs", ""),
    ("FEAT_FRINTTS", "Frint32", ""),
    ("FEAT_FRINTTS", "Frint64", ""),
    ("later scalar comparisons", "Fcmtl", ""),
    ("later scalar minimum and maximum", "Fmaxinm", ""),
    ("later scalar minimum and maximum", "Fmaxmg", ""),
    ("later scalar minimum and maximum", "Fmininm", ""),
    ("later scalar minimum and maximum", "Fminmg", ""),
    ("FEAT_SHA512", "Sha512", ""),
    ("FEAT_SHA3", "Bcax", ""),
    ("FEAT_SHA3", "Eor3", ""),
    ("FEAT_SHA3", "Rax1", ""),
    ("FEAT_SHA3", "Xar", ""),
    ("FEAT_SM3", "Sm3", ""),
    ("FEAT_SM4", "Sm4e", ""),
];

/// The extension that `encoding` of `word` belongs to, if this CPU does not have it. A few encodings belong to an extension
/// for some values of a field only.
fn absent_extension(
    word: u32,
    encoding: Encoding,
    table: &[(&'static str, &str, &str)],
) -> Option<&'static str> {
    if encoding == Encoding::MsrSiPstate {
        // SPSel, PAN, DAIFSet and DAIFClr by op1 and op2; every other PSTATE field is of an extension.
        let known = matches!((word >> 16 & 7, word >> 5 & 7), (0, 4) | (0, 5) | (3, 6) | (3, 7));
        return (!known).then_some("another PSTATE field");
    }
    let name = encoding.name();
    let fixed_point = name.ends_with("AsimdshfC") || name.ends_with("AsisdshfC");
    if fixed_point && word >> 20 & 7 == 0b001 {
        // immh 001x: 16-bit elements.
        return Some("FEAT_FP16");
    }
    table.iter().find(|(_, start, end)| name.starts_with(start) && name.ends_with(end)).map(|row| row.0)
}

/// A xorshift generator: the words are the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    /// A 5-bit field, often one of the values that matter.
    fn register(&mut self) -> u32 {
        match self.next() % 4 {
            0 => 0,
            1 => 31,
            _ => self.next() & 31,
        }
    }
}

/// Every value of bits 31 to 10, in which instructions are told apart, of the groups that `wanted` takes by bits 28 to 25,
/// `samples` times each with some registers below.
fn words(wanted: impl Fn(u32) -> bool, samples: u32) -> impl Iterator<Item = u32> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    (0..1u32 << 22)
        .filter(move |fixed| wanted(fixed >> 15 & 15))
        .flat_map(move |fixed| (0..samples).map(move |_| fixed << 10))
        .map(move |fixed| fixed | random.register() << 5 | random.register())
}

/// Compares on `words` and describes the differences, one line for each kind.
fn differences(words: impl Iterator<Item = u32>, table: &[(&'static str, &str, &str)]) -> Vec<String> {
    let mut kinds = BTreeMap::new();
    for word in words {
        let ours = decode(word);
        let theirs = decode_word(word);
        let absent = theirs.ok().and_then(|insn| absent_extension(word, insn.encoding(), table));
        if ours.is_some() == (theirs.is_ok() && absent.is_none()) {
            continue;
        }
        let (kind, text) = match theirs {
            Ok(insn) => (insn.encoding().name().to_string(), insn.at(0).to_string()),
            Err(error) => (format!("{error}, {:.12}", format!("{ours:?}")), error.to_string()),
        };
        let (count, _) = kinds.entry(kind).or_insert_with_key(|kind| {
            let absent = absent.map_or(String::new(), |name| format!(", absent here: {name}"));
            (0, format!("{word:#010x}: expected {text} ({kind}{absent}), got {ours:?}"))
        });
        *count += 1;
    }
    kinds.into_values().map(|(count, line)| format!("{line} [{count} like it]")).collect()
}

/// The constant in an instruction, and whether the base is written back before or after an access.
#[derive(Debug, PartialEq)]
struct Constant {
    value: i64,
    mode: IndexMode,
}

impl Constant {
    fn plain(value: i64) -> Option<Constant> {
        Some(Constant { value, mode: IndexMode::Offset })
    }

    fn ours(insn: &Insn) -> Option<Constant> {
        match *insn {
            Insn::B { offset }
            | Insn::Bl { offset }
            | Insn::BCond { offset, .. }
            | Insn::Cbz { offset, .. }
            | Insn::Tbz { offset, .. }
            | Insn::Adr { offset, .. }
            | Insn::LoadStore { addr: Address::Literal { offset }, .. } => Constant::plain(offset),
            Insn::LoadStore { addr: Address::Imm { offset, mode, .. }, .. }
            | Insn::LoadStorePair { offset, mode, .. } => Some(Constant { value: offset, mode }),
            Insn::LogicalImm { sf: true, imm, .. } => Constant::plain(imm as i64),
            Insn::LogicalImm { sf: false, imm, .. } => Constant::plain(i64::from(imm as u32)),
            _ => None,
        }
    }

    fn theirs(insn: &Instruction) -> Option<Constant> {
        insn.operands().as_slice().iter().rev().find_map(|operand| match operand {
            Operand::Label { offset, .. } => Constant::plain(*offset),
            Operand::Imm { value, .. } => Constant::plain(*value),
            Operand::Mem(mem) => {
                let value = match mem.offset {
                    Offset::Imm { value, .. } => value,
                    _ => 0,
                };
                let mode = match mem.writeback {
                    Writeback::None => IndexMode::Offset,
                    Writeback::Pre => IndexMode::Pre,
                    Writeback::Post => IndexMode::Post,
                };
                Some(Constant { value, mode })
            }
            _ => None,
        })
    }
}

fn assert_none(differences: &[String]) {
    assert!(
        differences.is_empty(),
        "{} kinds of differences:\n{}",
        differences.len(),
        differences.join("\n")
    );
}

#[test]
fn base_instructions_exist_exactly_where_the_specification_has_them() {
    let base = |group: u32| !matches!(group, 0b0000..=0b0011 | 0b0111 | 0b1111);
    assert_none(&differences(words(base, 2), ABSENT_BASE));
}

#[test]
fn fp_and_simd_instructions_exist_exactly_where_the_specification_has_them() {
    assert_none(&differences(words(|group| group & 0b0111 == 0b0111, 4), ABSENT_FP_SIMD));
}

#[test]
fn system_instructions_exist_exactly_where_the_specification_has_them() {
    // Bits 22 to 5, with Rt 31 and 0.
    let words = (0..1u32 << 18).flat_map(|bits| [0xd500_001f | bits << 5, 0xd500_0000 | bits << 5]);
    assert_none(&differences(words, ABSENT_BASE));
}

#[test]
fn exceptions_and_register_branches_exist_exactly_where_the_specification_has_them() {
    // opc (23 to 21) with op2 and LL (4 to 0); opc (24 to 21) with Rn and op4 (9 to 0).
    let exceptions = (0..1u32 << 8).map(|bits| 0xd400_0460 | bits >> 5 << 21 | bits & 31);
    let branches = (0..1u32 << 14).map(|bits| 0xd61f_0000 | bits >> 10 << 21 | bits & 0x3ff);
    assert_none(&differences(exceptions.chain(branches), ABSENT_BASE));
}

#[test]
fn reserved_and_sve_groups_are_undefined() {
    let found: Vec<_> = words(|group| group <= 0b0011, 1).filter(|word| decode(*word).is_some()).collect();
    assert!(found.is_empty(), "{found:x?}");
}

#[test]
fn offsets_and_bitmask_immediates_are_those_of_the_specification() {
    let base = |group: u32| !matches!(group, 0b0000..=0b0011 | 0b0111 | 0b1111);
    let found: Vec<_> = words(base, 1)
        .filter_map(|word| {
            let ours = Constant::ours(&decode(word)?)?;
            let theirs = decode_word(word).ok()?;
            let same = Constant::theirs(&theirs).is_some_and(|theirs| theirs == ours);
            (!same).then(|| format!("{word:#010x}: expected {}, got {ours:x?}", theirs.at(0)))
        })
        .take(20)
        .collect();
    assert_none(&found);
}
