//! Removes from the eBPF object what no loader reads: four fifths of it. The daemon carries the object, and aya reads
//! all of its relocations at each start.
//!
//! bpf-linker makes BTF from the debug information (DWARF) and leaves both in the object. The sections removed are
//! those that libbpf ignores (`ignore_elf_section` in tools/lib/bpf/libbpf.c): DWARF, and relocations of BTF, whose
//! fields have their values already.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use object::build::elf::{Builder, SectionData};
use object::elf;

/// Writes an object without these sections to another file, unless that has the same contents: its time tells cargo
/// whether the daemon must be built again.
pub(crate) fn strip(object: &Path, stripped: &Path) -> Result<()> {
    let bytes = fs::read(object).with_context(|| format!("cannot read {}", object.display()))?;
    let bytes = without_debug_info(&bytes).with_context(|| format!("cannot strip {}", object.display()))?;
    if fs::read(stripped).is_ok_and(|before| before == bytes) {
        return Ok(());
    }
    fs::write(stripped, bytes).with_context(|| format!("cannot write {}", stripped.display()))
}

fn without_debug_info(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object)?;
    for section in &mut builder.sections {
        section.delete = is_ignored(&section.name);
    }
    builder.delete_orphans();
    // LLVM puts sections' names into the same table as symbols' names; the writer wants a table for each.
    if !builder.sections.iter().any(|section| matches!(section.data, SectionData::SectionString)) {
        let names = builder.sections.add();
        (names.name, names.sh_type, names.sh_addralign) = (".shstrtab".into(), elf::SHT_STRTAB, 1);
        names.data = SectionData::SectionString;
    }
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    Ok(stripped)
}

/// Whether loaders ignore a section with this name.
fn is_ignored(name: &[u8]) -> bool {
    let of = name.strip_prefix(b".rel");
    of.unwrap_or(name).starts_with(b".debug_") || of.is_some_and(|of| of == b".BTF" || of == b".BTF.ext")
}

#[cfg(test)]
mod tests {
    use object::build::elf::Relocation;
    use object::{Object as _, ObjectSection as _};

    use super::*;

    /// An object with these sections, each with a relocation.
    fn object(sections: &[&'static str]) -> Vec<u8> {
        let mut builder = Builder::new(object::Endianness::Little, true);
        builder.header.e_type = elf::ET_REL;
        builder.header.e_machine = elf::EM_BPF;
        let table = |builder: &mut Builder<'_>, name: &'static str, sh_type, data| {
            let section = builder.sections.add();
            (section.name, section.sh_type, section.sh_addralign) = (name.into(), sh_type, 8);
            section.data = data;
            section.id()
        };
        table(&mut builder, ".shstrtab", elf::SHT_STRTAB, SectionData::SectionString);
        let strings = table(&mut builder, ".strtab", elf::SHT_STRTAB, SectionData::String);
        let symbols = table(&mut builder, ".symtab", elf::SHT_SYMTAB, SectionData::Symbol);
        builder.sections.get_mut(symbols).sh_link_section = Some(strings);
        for name in sections {
            let data = SectionData::Data(b"contents"[..].into());
            let section = table(&mut builder, name, elf::SHT_PROGBITS, data);
            let symbol = builder.symbols.add();
            (symbol.section, symbol.name) = (Some(section), (*name).into());
            symbol.set_st_info(elf::STB_GLOBAL, elf::STT_NOTYPE);
            let symbol = symbol.id();
            let relocation = Relocation { r_offset: 0, symbol: Some(symbol), r_type: elf::R_BPF_64_64, r_addend: 0 };
            let name = format!(".rel{name}").leak();
            let id = table(&mut builder, name, elf::SHT_REL, SectionData::Relocation(vec![relocation]));
            let relocations = builder.sections.get_mut(id);
            (relocations.sh_link_section, relocations.sh_info_section) = (Some(symbols), Some(section));
        }
        let mut bytes = Vec::new();
        builder.write(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_loaders_read_stays_as_it_was() {
        let whole = object(&["classifier", ".BTF", ".BTF.ext", ".debug_info", ".debug_str"]);
        let stripped = without_debug_info(&whole).unwrap();
        let stripped = object::File::parse(&*stripped).unwrap();
        let names: Vec<_> = stripped.sections().map(|section| section.name().unwrap().to_owned()).collect();
        assert_eq!(names, [".shstrtab", ".strtab", ".symtab", "classifier", ".relclassifier", ".BTF", ".BTF.ext"]);
        for name in ["classifier", ".BTF", ".BTF.ext"] {
            assert_eq!(stripped.section_by_name(name).unwrap().data().unwrap(), b"contents");
        }
        assert_eq!(stripped.section_by_name("classifier").unwrap().relocations().count(), 1);
    }
}
