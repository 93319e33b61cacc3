//! Attachments that no runtime will ever delete are released, and no others.

use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use podnet_tests::api::Abilities;
use podnet_tests::lab::{Lab, Pod, wait_until};
use podnet_tests::traffic::Family;
use serde_json::{Value, json};

fn object(pod: &Pod, metadata: Value) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "default", "name": pod.name()},
        "spec": {"nodeName": pod.node().name()},
    });
    object["metadata"].as_object_mut().expect("is an object").extend(metadata.as_object().cloned().unwrap_or_default());
    object
}

#[test]
fn orphaned_attachment_is_removed_when_api_and_kubelet_agree() -> Result<()> {
    let lab = Lab::builder().nodes(1).api(Abilities::default()).build()?;
    let node = lab.node(0);
    let add = |name: &str| node.add_pod(name);
    let [known, mirrored, static_pod, forgotten, young, late] =
        [add("known")?, add("mirrored")?, add("static")?, add("forgotten")?, add("young")?, add("late")?];
    // The kubelet's cgroups, with the systemd driver and without.
    let kubepods = lab.cgroup().join(node.name()).join("kubepods.slice/kubepods-burstable.slice");
    for (pod, separator) in [(&known, "_"), (&mirrored, "-"), (&static_pod, "_")] {
        fs::create_dir_all(
            kubepods.join(format!("kubepods-burstable-pod{}.slice", pod.uid().replace('-', separator))),
        )?;
    }
    for pod in [&known, &mirrored, &static_pod, &forgotten, &late] {
        let records = fs::read_dir(node.state_dir().join("attachments"))?.collect::<Result<Vec<_>, _>>()?;
        let ip = pod.ip(Family::V4).to_string();
        let record = records.iter().find(|entry| entry.file_name().to_string_lossy().contains(&format!(":{ip},")));
        let record = record.with_context(|| format!("no record of {}", pod.name()))?;
        File::options().write(true).open(record.path())?.set_modified(SystemTime::now() - Duration::from_secs(3600))?;
    }
    let endpoints = || -> Result<String> { node.podnet(&["endpoint", "list"]) };
    for pod in [&known, &late] {
        lab.api().apply(object(pod, json!({"uid": pod.uid()})));
    }
    let mirror = json!({"uid": "x", "annotations": {"kubernetes.io/config.hash": mirrored.uid()}});
    lab.api().apply(object(&mirrored, mirror));
    wait_until("the forgotten attachment goes", || {
        Ok(!endpoints()?.contains(&format!("{} ", forgotten.ip(Family::V4))))
    })?;
    for pod in [&known, &mirrored, &static_pod, &young, &late] {
        ensure!(endpoints()?.contains(&pod.ip(Family::V4).to_string()), "{} is gone too", pod.name());
    }
    let host_end = forgotten.host_ifname()?;
    // The link is removed after the entries.
    wait_until(&format!("no link {host_end}"), || Ok(node.place.ifindex(&host_end).is_err()))?;
    ensure!(lab.api().requests().iter().any(|r| r.contains("/pods") && r.contains("fieldSelector=spec.nodeName")));
    // The watch is refused because the server has forgotten its version, so the pods are listed again.
    lab.api().apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}}));
    lab.api().forget();
    lab.api().disconnect();
    lab.api().delete(&object(&late, json!({"uid": late.uid()})));
    wait_until("the other attachment goes", || Ok(!endpoints()?.contains(&format!("{} ", late.ip(Family::V4)))))?;
    // A late DEL of the runtime is successful.
    forgotten.delete()
}
