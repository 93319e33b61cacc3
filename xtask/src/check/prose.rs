//! Spelling in comments and documents: British spelling, and the field's own terms.
//!
//! Code is exempt: text between backquotes, fenced blocks, targets of links and words like `a::b`, `a/b`, `a_b` and
//! `a.b`.

/// Words and phrases to avoid, with replacements. The first letter may be a capital.
const WORDS: &[(&str, &str)] = &[
    ("choosy", "selective"),
    ("in its stead", "instead"),
    ("the verifier's patience", "verifier complexity"),
    // The glossary's terms.
    ("back-end", "backend"),
    ("back-ends", "backends"),
    ("data path", "datapath"),
    ("end point", "endpoint"),
    ("end points", "endpoints"),
    ("front-end", "frontend"),
    ("front-ends", "frontends"),
    ("hair-pin", "hairpin"),
    ("next-hop", "next hop"),
    ("ruleset", "rule set"),
    ("rule-set", "rule set"),
    ("up-link", "uplink"),
    // American spelling.
    ("analyze", "analyse"),
    ("behavior", "behaviour"),
    ("canceled", "cancelled"),
    ("catalog", "catalogue"),
    ("center", "centre"),
    ("color", "colour"),
    ("favor", "favour"),
    ("fulfill", "fulfil"),
    ("honor", "honour"),
    ("initialize", "initialise"),
    ("labeled", "labelled"),
    ("license", "licence"),
    ("licenses", "licences"),
    ("neighbor", "neighbour"),
    ("neighbors", "neighbours"),
    ("normalize", "normalise"),
    ("normalized", "normalised"),
    ("optimize", "optimise"),
    ("optimized", "optimised"),
    ("organize", "organise"),
    ("prioritize", "prioritise"),
    ("recognize", "recognise"),
    ("recognized", "recognised"),
    ("serialize", "serialise"),
    ("serialized", "serialised"),
    ("signaled", "signalled"),
    ("summarize", "summarise"),
    ("synchronize", "synchronise"),
    ("synchronized", "synchronised"),
];

/// Names of the field in wrong spelling, with the right one. These are case-sensitive.
const NAMES: &[(&str, &str)] = &[
    ("Bpf", "BPF"),
    ("Clusterip", "ClusterIP"),
    ("ClusterIp", "ClusterIP"),
    ("Cni", "CNI"),
    ("Daemonset", "DaemonSet"),
    ("EBPF", "eBPF"),
    ("Ebpf", "eBPF"),
    ("Endpointslice", "EndpointSlice"),
    ("Icmp", "ICMP"),
    ("IPV4", "IPv4"),
    ("IPV6", "IPv6"),
    ("Ipv4", "IPv4"),
    ("Ipv6", "IPv6"),
    ("ipv4", "IPv4"),
    ("ipv6", "IPv6"),
    ("Loadbalancer", "load balancer, or LoadBalancer"),
    ("loadbalancer", "load balancer, or LoadBalancer"),
    ("Nodeport", "NodePort"),
    ("Servicecidr", "ServiceCIDR"),
    ("Tcp", "TCP"),
    ("Udp", "UDP"),
    ("Xdp", "XDP"),
    ("kubernetes", "Kubernetes"),
    ("linux", "Linux"),
];

/// Violations in a Markdown document, with their lines (from 1).
pub(super) fn in_document(text: &str) -> Vec<(usize, String)> {
    misspelt(prose(text))
}

/// Violations in the comments of a Rust source file, with their lines (from 1).
pub(super) fn in_comments(source: &str) -> Vec<(usize, String)> {
    let comment = |line: &str| match line.trim_start() {
        line if line.starts_with("//") => line.trim_start_matches(['/', '!']).to_owned(),
        // An empty line, so that comments at two places are separate paragraphs.
        _ => String::new(),
    };
    in_document(&source.lines().map(comment).collect::<Vec<_>>().join("\n"))
}

/// The words of Markdown with their lines (from 1). An empty word ends a paragraph.
fn prose(text: &str) -> Vec<(usize, String)> {
    let mut words = Vec::new();
    let (mut fenced, mut code) = (false, false);
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if line.trim().is_empty() {
            code = false;
            words.push((number + 1, String::new()));
        } else if !fenced {
            let mut prose = String::new();
            for (at, part) in line.split('`').enumerate() {
                if at > 0 {
                    code = !code;
                    prose.push('`');
                }
                prose.push_str(if code { "" } else { part });
            }
            words.extend(prose.split_whitespace().filter_map(word).map(|word| (number + 1, word)));
        }
    }
    words
}

/// A word without the punctuation around it; `None` if it looks like code, a path or an address.
fn word(chunk: &str) -> Option<String> {
    // The target of a link follows its text.
    let chunk = chunk.split("](").next().unwrap_or(chunk);
    let word = chunk.trim_matches(|c: char| !c.is_alphanumeric() && c != '`');
    let is_code = ["::", "/", "_", ".", "`", "="].iter().any(|sign| word.contains(sign));
    (!word.is_empty() && !is_code).then(|| word.to_owned())
}

/// Words and phrases on the lists, with their replacements.
fn misspelt(words: Vec<(usize, String)>) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, (line, first)) in words.iter().enumerate() {
        let uncapitalised = uncapitalised(first);
        let phrases = WORDS.iter().filter(|(wrong, _)| {
            let rest = wrong.strip_prefix(uncapitalised.as_str()).filter(|_| !first.is_empty());
            rest.is_some_and(|rest| {
                let mut next = words[at + 1..].iter().map(|(_, word)| word.as_str());
                (rest.is_empty() || rest.starts_with(' '))
                    && rest.split_whitespace().all(|part| next.next() == Some(part))
            })
        });
        let names = NAMES.iter().filter(|(wrong, _)| wrong == first);
        found.extend(phrases.chain(names).map(|(wrong, right)| (*line, format!("`{wrong}`: write {right}"))));
    }
    found
}

fn uncapitalised(word: &str) -> String {
    let mut characters = word.chars();
    characters.next().map(|first| first.to_lowercase().chain(characters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(found: Vec<(usize, String)>) -> Vec<usize> {
        found.into_iter().map(|(line, _)| line).collect()
    }

    #[test]
    fn listed_words_are_found_in_prose_only() {
        assert_eq!(lines(in_document("Its behaviour.\n\nBehavior, and\n(behavior)")), [3, 4]);
        assert!(in_document("`behavior` and `a\nbehavior b` [x](behavior.md) behavior.rs a::behavior").is_empty());
        assert!(in_document("```text\nbehavior\n```\n").is_empty());
        assert_eq!(
            lines(in_comments("fn behavior() {}\n/// The behavior.\nlet a = \"behavior\"; // `behavior`\n")),
            [2]
        );
    }

    #[test]
    fn names_are_case_sensitive() {
        assert_eq!(in_document("of Ipv4, IPv4"), [(1, "`Ipv4`: write IPv4".to_owned())]);
        assert!(in_document("Kubernetes on Linux, docs/kubernetes.md").is_empty());
        assert_eq!(lines(in_document("kubernetes\non linux")), [1, 2]);
    }

    #[test]
    fn phrases_may_span_lines_but_not_paragraphs() {
        assert_eq!(lines(in_document("Now\nin its\nstead.")), [2]);
        assert_eq!(lines(in_comments("/// Now in\n/// its stead.\n")), [1]);
        assert!(in_document("in its\n\nstead").is_empty());
        assert!(in_comments("/// in its\nfn f() {}\n/// stead\n").is_empty());
    }
}
