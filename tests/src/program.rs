//! A program for a guest, without a compiler: x86-64 machine code in the smallest ELF file that Linux takes.

/// Writes `says` to its standard output, and exits with `code`.
pub fn program(says: &str, code: u8) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let length = u32::try_from(says.len()).expect("a short text");
    let mut text = Vec::new();
    // write(1, says, length): the text follows the code, 23 bytes after the instruction that takes its address.
    text.extend([0xb8, 1, 0, 0, 0, 0xbf, 1, 0, 0, 0]);
    text.extend([0x48, 0x8d, 0x35, 19, 0, 0, 0]);
    text.push(0xba);
    text.extend(length.to_le_bytes());
    text.extend([0x0f, 0x05]);
    // exit(code)
    text.extend([0xb8, 60, 0, 0, 0, 0xbf, code, 0, 0, 0, 0x0f, 0x05]);
    text.extend(says.as_bytes());

    let size = HEADERS + text.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |file: &mut Vec<u8>, values: &[u16]| file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    let word = |file: &mut Vec<u8>, values: &[u32]| file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    let long = |file: &mut Vec<u8>, values: &[u64]| file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    // An executable for x86-64; its entry, and where its one program header is.
    half(&mut file, &[2, 62]);
    word(&mut file, &[1]);
    long(&mut file, &[BASE + HEADERS, 64, 0]);
    word(&mut file, &[0]);
    half(&mut file, &[64, 56, 1, 64, 0, 0]);
    // Load all of it, to be read and executed.
    word(&mut file, &[1, 5]);
    long(&mut file, &[0, BASE, BASE, size, size, 0x1000]);
    file.extend(text);
    file
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    #[test]
    fn the_program_says_its_text_and_exits_with_its_code() {
        let file = tempfile::tempdir().unwrap().keep().join("program");
        std::fs::write(&file, super::program("I fail\n", 3)).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        let output = Command::new(&file).output().unwrap();
        std::fs::remove_dir_all(file.parent().unwrap()).unwrap();
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(3), &b"I fail\n"[..]));
    }
}
