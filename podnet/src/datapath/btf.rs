//! The layout of a table's keys and values, from the BTF that the kernel keeps from the object which created the
//! table.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use bytemuck::{Pod, Zeroable};
use podnet_cni::datapath::bpf;
use podnet_common::layout::migrate::Field;

/// `enum bpf_cmd` of linux/bpf.h.
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_BTF_GET_FD_BY_ID: libc::c_int = 19;

/// Layout of a key or a value; without fields if it is an integer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape(Vec<(String, usize, usize)>);

impl Shape {
    /// The fields.
    pub fn fields(&self) -> Vec<Field<'_>> {
        self.0.iter().map(|(name, offset, size)| Field { name, offset: *offset, size: *size }).collect()
    }
}

/// Layouts of a table's keys and values; `None` if the table was created without BTF.
pub fn shapes(map: BorrowedFd<'_>) -> io::Result<Option<(Shape, Shape)>> {
    /// The beginning of `struct bpf_map_info`.
    #[repr(C)]
    #[derive(Clone, Copy, Pod, Zeroable)]
    struct MapInfo {
        before: [u32; 6],
        name: [u8; 16],
        between: [u32; 2],
        netns: [u64; 2],
        btf: u32,
        key: u32,
        value: u32,
        after: u32,
    }
    /// The beginning of `struct bpf_btf_info`.
    #[repr(C)]
    #[derive(Clone, Copy, Pod, Zeroable)]
    struct BtfInfo {
        data: u64,
        size: u32,
        id: u32,
    }
    let mut of_map = MapInfo::zeroed();
    info(map, &mut of_map)?;
    if of_map.btf == 0 || of_map.value == 0 {
        return Ok(None);
    }
    let btf = by_id(of_map.btf)?;
    let btf = std::os::fd::AsFd::as_fd(&btf);
    // Two calls: one for the sizes, one for the data.
    let mut of_btf = BtfInfo::zeroed();
    info(btf, &mut of_btf)?;
    let mut data = vec![0u8; of_btf.size as usize];
    of_btf = BtfInfo { data: data.as_mut_ptr() as u64, size: of_btf.size, id: 0 };
    info(btf, &mut of_btf)?;
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "malformed BTF");
    let types = Types::parse(&data).ok_or_else(malformed)?;
    let shape = |id| types.shape(id).ok_or_else(malformed);
    Ok(Some((shape(of_map.key)?, shape(of_map.value)?)))
}

fn info<T: Pod>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        fd: u32,
        len: u32,
        info: u64,
    }
    let mut attr =
        Attr { fd: object.as_raw_fd() as u32, len: size_of::<T>() as u32, info: std::ptr::from_mut(info) as u64 };
    // SAFETY: the attribute has the layout of the command, and the structure that it points to is live, as are the
    // buffers that this one points to.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }.map(drop)
}

fn by_id(id: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        id: u32,
        next: u32,
        flags: u32,
    }
    let mut attr = Attr { id, next: 0, flags: 0 };
    // SAFETY: the attribute has the layout of the command, without pointers.
    let fd = unsafe { bpf(BPF_BTF_GET_FD_BY_ID, &mut attr) }?;
    // SAFETY: the call has just returned this descriptor, and it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `enum` of linux/btf.h.
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FWD: u32 = 7;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const FLOAT: u32 = 16;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// `struct btf_type` with the data that follows it.
struct Type<'a> {
    info: u32,
    /// A size, or the id of another type.
    size: u32,
    rest: &'a [u8],
}

impl Type<'_> {
    fn kind(&self) -> u32 {
        self.info >> 24 & 0x1f
    }
}

struct Types<'a> {
    types: Vec<Type<'a>>,
    strings: &'a [u8],
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Limit for the nesting of types, against malformed data.
const DEPTH: u32 = 32;

impl<'a> Types<'a> {
    /// Reads `struct btf_header`, the types and the strings.
    fn parse(data: &'a [u8]) -> Option<Self> {
        let header = word(data, 4)? as usize;
        let section = |at: usize| -> Option<&'a [u8]> {
            let (offset, length) = (word(data, at)? as usize, word(data, at + 4)? as usize);
            data.get(header + offset..)?.get(..length)
        };
        let (mut rest, strings) = (section(8)?, section(16)?);
        let mut types = Vec::new();
        while !rest.is_empty() {
            let (info, size) = (word(rest, 4)?, word(rest, 8)?);
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let length = match kind {
                kind::INT | kind::VAR | kind::DECL_TAG => 4,
                kind::ARRAY => 12,
                kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => count * 12,
                kind::ENUM | kind::FUNC_PROTO => count * 8,
                kind::PTR
                | kind::FWD
                | kind::TYPEDEF
                | kind::VOLATILE
                | kind::CONST
                | kind::RESTRICT
                | kind::FUNC
                | kind::FLOAT
                | kind::TYPE_TAG => 0,
                _ => return None,
            };
            types.push(Type { info, size, rest: rest.get(12..12 + length)? });
            rest = &rest[12 + length..];
        }
        Some(Self { types, strings })
    }

    /// A type by its id; ids begin with 1.
    fn get(&self, id: u32) -> Option<&Type<'a>> {
        self.types.get(id.checked_sub(1)? as usize)
    }

    /// Follows typedefs and qualifiers to the type itself.
    fn resolve(&self, mut id: u32) -> Option<&Type<'a>> {
        for _ in 0..DEPTH {
            let named = self.get(id)?;
            match named.kind() {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => id = named.size,
                _ => return Some(named),
            }
        }
        None
    }

    fn size(&self, id: u32, depth: u32) -> Option<usize> {
        let depth = depth.checked_sub(1)?;
        let resolved = self.resolve(id)?;
        match resolved.kind() {
            kind::ARRAY => {
                let count = word(resolved.rest, 8)? as usize;
                count.checked_mul(self.size(word(resolved.rest, 0)?, depth)?)
            }
            kind::PTR => Some(8),
            _ => Some(resolved.size as usize),
        }
    }

    fn name(&self, offset: u32) -> Option<String> {
        let bytes = self.strings.get(offset as usize..)?;
        let end = bytes.iter().position(|byte| *byte == 0)?;
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }

    /// The fields of a structure; none for other types.
    fn shape(&self, id: u32) -> Option<Shape> {
        let resolved = self.resolve(id)?;
        if resolved.kind() != kind::STRUCT {
            return Some(Shape::default());
        }
        let bit_fields = resolved.info >> 31 != 0;
        let member = |member: &[u8]| {
            let (name, id, offset) = (word(member, 0)?, word(member, 4)?, word(member, 8)?);
            let bits = if bit_fields { offset & 0x00ff_ffff } else { offset };
            Some((self.name(name)?, bits as usize / 8, self.size(id, DEPTH)?))
        };
        let fields: Vec<_> = resolved.rest.chunks_exact(12).map(member).collect::<Option<_>>()?;
        // A newtype has the layout of its only field.
        let newtype = matches!(&fields[..], [(name, 0, _)] if name == "__0");
        Some(Shape(if newtype { Vec::new() } else { fields }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct s { u32 a; u16 b[3]; }`, as `struct btf_header` with types and strings.
    fn example() -> Vec<u8> {
        let strings = b"\0u32\0u16\0s\0a\0b\0";
        let types: [&[u32]; 4] = [
            &[1, kind::INT << 24, 4, 32],
            &[5, kind::INT << 24, 2, 16],
            &[0, kind::ARRAY << 24, 0, 2, 1, 3],
            &[9, kind::STRUCT << 24 | 2, 12, 11, 1, 0, 13, 3, 32],
        ];
        let types: Vec<u8> = types.concat().into_iter().flat_map(u32::to_ne_bytes).collect();
        let header = [0x0001_eb9f, 24, 0, types.len() as u32, types.len() as u32, strings.len() as u32];
        [header.into_iter().flat_map(u32::to_ne_bytes).collect(), types, strings.to_vec()].concat()
    }

    #[test]
    fn fields_have_names_offsets_and_sizes() {
        let data = example();
        let types = Types::parse(&data).unwrap();
        assert_eq!(types.shape(4), Some(Shape(vec![("a".into(), 0, 4), ("b".into(), 4, 6)])));
        assert_eq!(types.shape(1), Some(Shape::default()));
        assert_eq!(types.shape(5), None);
    }

    #[test]
    fn truncated_btf_has_no_layout() {
        let data = example();
        for length in 0..data.len() {
            let shape = Types::parse(&data[..length]).and_then(|types| types.shape(4));
            assert_eq!(shape, None, "{length}");
        }
    }
}
