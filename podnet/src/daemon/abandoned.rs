//! Abandoned attachments: the runtime has forgotten them, their pods are gone, and no DEL will come.
//!
//! A runtime that loses its state leaves network namespaces behind, and with them addresses that are never released. An
//! attachment counts as abandoned only if two independent witnesses agree: the API has no such pod on this node, and
//! the kubelet has no cgroup for it. The kubelet names a pod's cgroup by its uid, including those of static pods, which
//! may be missing from the API.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use podnet_cni::id::AttachmentId;
use podnet_cni::record::State;
use podnet_cni::store::{Content, Store, StoreError};

/// Minimum age: neither witness may know a newly created pod yet.
const YOUNG: Duration = Duration::from_secs(600);
/// Maximum depth of pod cgroups in the hierarchy:
/// `kubelet.slice/kubelet-kubepods.slice/…-burstable.slice/…-pod<uid>.slice`, below a configured root of the kubelet.
const DEPTH: usize = 8;

/// Finds abandoned attachments. `pods`: uids of this node's pods.
pub(super) fn find(
    store: &Store,
    pods: &BTreeSet<String>,
    cgroup: &Path,
    now: SystemTime,
) -> Result<BTreeSet<AttachmentId>, StoreError> {
    let mut suspects = Vec::new();
    for name in store.list()?.into_iter().filter(|name| name.state == State::Ready) {
        let Some(Content::Valid(record)) = store.read(&name)? else { continue };
        let Some(uid) = record.pod.map(|pod| pod.uid).filter(|uid| !uid.is_empty() && !pods.contains(uid)) else {
            continue;
        };
        let old = store.written(&name)?.is_some_and(|when| now.duration_since(when).is_ok_and(|age| age > YOUNG));
        if old {
            suspects.push((uid, record.id));
        }
    }
    if suspects.is_empty() {
        return Ok(BTreeSet::new());
    }
    let mut names = Vec::new();
    list(cgroup, DEPTH, &mut names);
    Ok(evaluate(suspects, pods, &names))
}

/// The suspects without a cgroup. `cgroups`: names of all cgroups.
fn evaluate(
    suspects: Vec<(String, AttachmentId)>,
    pods: &BTreeSet<String>,
    cgroups: &[String],
) -> BTreeSet<AttachmentId> {
    // The kubelet may write a uid with underscores.
    let has = |uid: &str| {
        let [plain, escaped] = [format!("pod{uid}"), format!("pod{}", uid.replace('-', "_"))];
        cgroups.iter().any(|name| name.contains(&plain) || name.contains(&escaped))
    };
    // If no pod has a cgroup here, they are elsewhere or invisible, and there is no second witness.
    if !pods.iter().any(|uid| has(uid)) {
        return BTreeSet::new();
    }
    suspects.into_iter().filter(|(uid, _)| !has(uid)).map(|(_, id)| id).collect()
}

/// Names of all directories below `directory`, down to `depth` levels.
fn list(directory: &Path, depth: usize, names: &mut Vec<String>) {
    if depth == 0 {
        return;
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names.push(entry.file_name().to_string_lossy().into_owned());
            list(&entry.path(), depth - 1, names);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attachment_is_abandoned_only_if_both_witnesses_agree() {
        let suspect = |uid: &str| {
            let json = format!(r#"{{"containerID": "c{uid}", "ifname": "eth0"}}"#);
            (uid.to_owned(), serde_json::from_str(&json).unwrap())
        };
        let evaluated = |pods: &[&str], cgroups: &[&str]| -> Vec<String> {
            let (pods, cgroups) =
                (pods.iter().map(|p| (*p).to_owned()).collect(), cgroups.iter().map(|c| (*c).to_owned()));
            let ids = evaluate(vec![suspect("a-1"), suspect("b-2")], &pods, &cgroups.collect::<Vec<_>>());
            ids.iter().map(|id| id.container.as_str().to_owned()).collect()
        };
        assert_eq!(evaluated(&["d-4"], &["kubepods-podd_4.slice", "kubepods-burstable-poda_1.slice"]), ["cb-2"]);
        assert_eq!(evaluated(&["d-4"], &["podd-4", "poda-1", "podb-2"]), [""; 0]);
        assert_eq!(evaluated(&["d-4"], &["system.slice"]), [""; 0], "the kubelet's cgroups are not to be seen");
        assert_eq!(evaluated(&[], &["poda-1"]), [""; 0], "the API knows no pod that has one");
    }
}
