//! Sanitising untrusted text for terminals and logs: names, annotations, file names and messages that tenants and
//! servers choose.
//!
//! Control characters, line breaks and invisible characters are escaped, so that no text in an object can pass for
//! output of podnet. JSON does not need this: it has its own escape sequences.

use std::borrow::Cow;
use std::error::Error;
use std::{fmt, io, iter};

use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};

/// Maximum length of a log line, in bytes. The verifier's messages are long.
const LOGGED: usize = 16 << 10;
/// The mark for omitted text.
const GAP: &str = " … ";

/// A text on one line, of at most `most` bytes. A longer one loses its middle.
pub fn on_one_line(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most && text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    // Escaping never shortens, so no more than this is needed of either end.
    let head = &text[..text.floor_char_boundary(most)];
    let tail = &text[text.ceil_char_boundary(text.len().saturating_sub(most))..];
    let escaped = escape(head);
    if head.len() == text.len() && escaped.len() <= most {
        return Cow::Owned(escaped);
    }
    let half = most.saturating_sub(GAP.len()) / 2;
    let (head, tail) = (escaped, escape(tail));
    let head = &head[..head.floor_char_boundary(half)];
    let tail = &tail[tail.ceil_char_boundary(tail.len().saturating_sub(half))..];
    Cow::Owned([head, GAP, tail].concat())
}

/// Whether a character is printable. `escape_debug` escapes control and format characters, such as those that change
/// the direction of writing, separators, combining marks, and unassigned code points.
fn is_plain(c: char) -> bool {
    matches!(c, ' '..='~') || c.escape_debug().len() == 1
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if is_plain(c) {
            escaped.push(c);
        } else {
            escaped.extend(c.escape_debug());
        }
    }
    escaped
}

/// An error, followed by those of its causes that its own text omits, so that the errno is always included.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let part = cause.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        source = cause.source();
    }
    text
}

/// The error number of a refusal by the kernel: that of the innermost cause.
pub fn errno(error: &(dyn Error + 'static)) -> Option<i32> {
    let causes = iter::successors(Some(error), |cause| (*cause).source());
    causes.filter_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error()).last()
}

/// What to do about a refusal by the kernel, by its error number.
pub fn advice(errno: i32) -> &'static str {
    match errno {
        libc::EPERM | libc::EACCES => {
            "podnet needs root with CAP_NET_ADMIN and CAP_SYS_ADMIN in the host's network namespace: check its \
             privileges, and the AppArmor or SELinux policy"
        }
        libc::ENOMEM | libc::ENOBUFS | libc::ENOSPC => "the kernel is out of memory or at a limit: free memory",
        libc::EMFILE | libc::ENFILE => "too many open files: raise the limit (ulimit -n, fs.file-max)",
        libc::EOPNOTSUPP => "the kernel lacks this feature: load its module, or use a kernel that has it",
        _ => "if this persists, check the kernel log (dmesg)",
    }
}

/// The [chain] of an error, followed by [advice] if the kernel has refused.
pub fn refusal(error: &(dyn Error + 'static)) -> String {
    let text = chain(error);
    errno(error).map_or(text.clone(), |errno| format!("{text}; {}", advice(errno)))
}

/// Formats the fields of log lines, escaped, so that callers need not escape anything.
#[derive(Debug)]
pub struct LogFields;

impl<'writer> FormatFields<'writer> for LogFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut text = String::new();
        DefaultFields::new().format_fields(Writer::new(&mut text), fields)?;
        writer.write_str(&on_one_line(&text, LOGGED))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Characters that end a line, move the cursor, change the direction or are invisible.
    const HOSTILE: [char; 30] = [
        '\0',
        '\u{7}',
        '\u{8}',
        '\t',
        '\n',
        '\u{b}',
        '\r',
        '\u{1b}',
        '\u{7f}',
        '\u{85}',
        '\u{90}',
        '\u{9b}',
        '\u{9d}',
        '\u{ad}',
        '\u{61c}',
        '\u{200b}',
        '\u{200d}',
        '\u{200e}',
        '\u{200f}',
        '\u{2028}',
        '\u{2029}',
        '\u{202a}',
        '\u{202e}',
        '\u{2060}',
        '\u{2066}',
        '\u{2069}',
        '\u{feff}',
        '\u{fff9}',
        '\u{e0001}',
        '\u{e0041}',
    ];

    #[test]
    fn what_is_not_seen_as_it_is_is_escaped() {
        for c in HOSTILE {
            let text = format!("a{c}b");
            let shown = on_one_line(&text, 100);
            assert!(!shown.contains(c) && shown.starts_with("a\\") && shown.ends_with('b'), "{c:?}: {shown:?}");
        }
        for c in ('\0'..' ').chain('\u{7f}'..='\u{9f}').chain('\u{202a}'..='\u{202e}').chain('\u{2066}'..='\u{2069}') {
            assert!(!on_one_line(&c.to_string(), 100).contains(c), "{c:?}");
        }
        assert_eq!(on_one_line("\u{1b}[2Jgone\n\u{202e}", 100), "\\u{1b}[2Jgone\\n\\u{202e}");
        assert_eq!(on_one_line(&String::from_utf8_lossy(b"\xff.yaml"), 100), "\u{fffd}.yaml");
        for plain in ["", "it's \"fine\" \\ … → ü 字 Ω", "default/web"] {
            assert!(matches!(on_one_line(plain, 100), Cow::Borrowed(shown) if shown == plain));
        }
    }

    #[test]
    fn an_error_is_told_with_its_causes_once() {
        #[derive(Debug, thiserror::Error)]
        enum Failure {
            #[error("`call` failed")]
            Silent(#[source] io::Error),
            #[error("no table: {source}; make one")]
            Advising { source: Box<Self> },
        }
        let silent = || Failure::Silent(io::Error::from_raw_os_error(1));
        assert_eq!(chain(&silent()), "`call` failed: Operation not permitted (os error 1)");
        let advising = Failure::Advising { source: Box::new(silent()) };
        assert_eq!(chain(&advising), "no table: `call` failed; make one: Operation not permitted (os error 1)");
        let told = refusal(&silent());
        assert!(told.starts_with("`call` failed: Operation not permitted (os error 1); podnet needs root"), "{told}");
        assert_eq!(refusal(&io::Error::other("it failed")), "it failed");
    }

    #[test]
    fn what_is_too_long_keeps_its_ends() {
        let text = format!("begin{}end", "x".repeat(1 << 20));
        let shown = on_one_line(&text, 64);
        assert!(shown.len() <= 64 && shown.starts_with("beginx") && shown.ends_with("xend"), "{shown}");
        for (text, most) in
            [("\n".repeat(40), 64), ("ü".repeat(100), 63), ("\u{202e}".repeat(1000), 64), ("a\n".into(), 2)]
        {
            let shown = on_one_line(&text, most);
            assert!(shown.len() <= most.max(GAP.len()) && shown.contains('…'), "{shown}");
        }
    }

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_line_stays_one_whatever_its_message_fields_and_spans_say() {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = tracing_subscriber::fmt()
            .fmt_fields(LogFields)
            .with_ansi(true)
            .with_writer(move || writer.clone())
            .finish();
        let hostile: String = HOSTILE.iter().collect();
        let error = io::Error::other(hostile.clone());
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("cni.add", pod.name = hostile, attachment = %hostile);
            let _in = span.enter();
            span.record("attachment", &*hostile);
            tracing::warn!(file = %hostile, text = hostile, debug = ?hostile, %error, "{hostile} {error}");
            tracing::error!(error = &error as &dyn std::error::Error, "{}", "x".repeat(1 << 20));
        });
        let written = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<_> = written.lines().collect();
        assert_eq!(lines.len(), 2, "{written:?}");
        assert!(lines.iter().all(|line| line.len() < 4 * LOGGED));
        // The only escape sequences are those of the log's own colours.
        let own = written.replace(['\n'], "");
        for c in HOSTILE.into_iter().filter(|c| !['\n', '\u{1b}'].contains(c)) {
            assert!(!own.contains(c), "{c:?} in {written:?}");
        }
        for sequence in own.split('\u{1b}').skip(1) {
            let end = sequence.find('m').unwrap_or_default();
            assert!(sequence.starts_with('[') && sequence[1..end].bytes().all(|b| b.is_ascii_digit()), "{sequence}");
        }
    }
}
