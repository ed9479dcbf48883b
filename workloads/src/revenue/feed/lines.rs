//! The lines of a file, and the hash of all that was read of it.

use super::{wrong, Fed, FeedError};
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Take},
    path::{Path, PathBuf},
};
use xxhash_rust::xxh3::Xxh3;

/// A file that is read line by line, up to a length.
pub(super) struct Lines {
    path: PathBuf,
    reader: BufReader<Take<File>>,
    hash: Xxh3,
    bytes: u64,
    number: u64,
    line: Vec<u8>,
}

impl Lines {
    /// From the beginning of a file on, and no more than so many bytes of it.
    pub fn open(path: &Path, bytes_max: u64) -> Result<Lines, FeedError> {
        let file = File::open(path).map_err(|error| wrong(path, None, &error.to_string()))?;
        Ok(Lines {
            path: path.to_owned(),
            reader: BufReader::with_capacity(1 << 20, file.take(bytes_max)),
            hash: Xxh3::new(),
            bytes: 0,
            number: 0,
            line: Vec::new(),
        })
    }

    /// How many lines were read.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// How many bytes were read.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What was read, for a job.
    pub fn fed(&self, job: &str) -> Fed {
        Fed {
            lines: self.number,
            bytes: self.bytes,
            hash: format!("{:032x}", self.hash.digest128()),
            job: job.to_owned(),
        }
    }

    /// Something is wrong with the line that was read last.
    pub fn wrong(&self, what: &str) -> FeedError {
        wrong(&self.path, Some(self.number), what)
    }

    /// The next line, without its end; nothing at the end of the file.
    pub fn next(&mut self) -> Result<Option<&str>, FeedError> {
        if self.read_line()? == 0 {
            return Ok(None);
        }
        self.number += 1;
        match std::str::from_utf8(&self.line) {
            Ok(_) => Ok(Some(self.text())),
            Err(error) => Err(self.wrong(&error.to_string())),
        }
    }

    /// The line that was read last.
    pub fn text(&self) -> &str {
        let text = std::str::from_utf8(&self.line).unwrap_or_default();
        let text = text.strip_suffix('\n').unwrap_or(text);
        text.strip_suffix('\r').unwrap_or(text)
    }

    /// Skips what was fed, and refuses a file that does not begin with it.
    pub fn skip(&mut self, fed: &Fed) -> Result<(), FeedError> {
        let path = self.path.clone();
        let other = |what: String| {
            let right =
                "the file that was fed, or that file with more at its end, would be right; \
                         another one needs a folder of its own";
            wrong(&path, None, &format!("{what}; {right}"))
        };
        assert_eq!((self.bytes, self.number), (0, 0), "nothing was read");
        let mut last = b'\n';
        while self.bytes < fed.bytes {
            let there = self.reader.fill_buf();
            let there = there.map_err(|error| other(error.to_string()))?;
            let left = usize::try_from(fed.bytes - self.bytes).unwrap_or(usize::MAX);
            let read = &there[..there.len().min(left)];
            let Some(byte) = read.last() else {
                return Err(other(format!(
                    "it has {} bytes, and {} were fed before",
                    self.bytes, fed.bytes
                )));
            };
            last = *byte;
            self.hash.update(read);
            let read = read.len();
            self.bytes += read as u64;
            self.reader.consume(read);
        }
        assert_eq!(self.bytes, fed.bytes, "no byte more");
        self.number = fed.lines;
        if self.fed(&fed.job) != *fed {
            return Err(other(format!(
                "its first {} bytes are not those that were fed before",
                fed.bytes
            )));
        }
        // The last line that was fed had no end, and may have one by now.
        let goes_on = last != b'\n' && self.read_line()? > 0;
        if goes_on && !matches!(&*self.line, b"\n" | b"\r\n") {
            return Err(self.wrong("it goes on, and was fed before without this"));
        }
        Ok(())
    }

    fn read_line(&mut self) -> Result<usize, FeedError> {
        self.line.clear();
        let read: io::Result<usize> = self.reader.read_until(b'\n', &mut self.line);
        let read = read.map_err(|error| self.wrong(&error.to_string()))?;
        self.hash.update(&self.line);
        self.bytes += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_goes_on_only_from_what_was_fed_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            Lines::open(&path, text.len() as u64).unwrap()
        };
        for (fed, whole, left) in [
            ("", "a\nb", Some(&["a", "b"][..])),
            ("a\nb\n", "a\nb\n", Some(&[])),
            ("a\nb\n", "a\nb\nc\r\n\nd", Some(&["c", "", "d"])),
            ("a\nb", "a\nb", Some(&[])),
            ("a\nb", "a\nb\n", Some(&[])),
            ("a\nb", "a\nb\r\nc\n", Some(&["c"])),
            ("a\nb", "a\nbc\n", None),
            ("a\nb\n", "a\nb", None),
            ("a\nb\n", "a\nc\n", None),
            ("a\nb\n", "", None),
        ] {
            let mut before = read(fed);
            while before.next().unwrap().is_some() {}
            let fed = before.fed("job");
            let mut lines = read(whole);
            let skipped = lines.skip(&fed);
            assert_eq!(
                skipped.is_ok(),
                left.is_some(),
                "{fed:?} of {whole:?}: {skipped:?}"
            );
            let mut rest = Vec::new();
            while let (true, Some(line)) = (left.is_some(), lines.next().unwrap()) {
                rest.push(line.to_owned());
            }
            assert_eq!(rest, left.unwrap_or_default());
            if left.is_some() {
                let mut all = read(whole);
                while all.next().unwrap().is_some() {}
                assert_eq!(lines.fed("job"), all.fed("job"), "{whole:?} after {fed:?}");
            }
        }
    }
}
