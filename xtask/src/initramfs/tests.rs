// SPDX-License-Identifier: MIT OR Apache-2.0
//! dom0's root, made from Debian's packages and booted without the hypervisor.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{LIMIT_BYTES, Spec, build};
use crate::exec::Channel;
use crate::kernel::{self, Series};

fn made(series: Series, packages: &[String]) -> (PathBuf, PathBuf) {
    let target = crate::workspace::target();
    let package = kernel::fetch(series, &target).unwrap();
    let isthmus = crate::compile::dom0_tools().unwrap().path;
    let out = target.join(format!("test-root-{}", package.release));
    let spec = Spec {
        modules: Some(&package.modules),
        release: &package.release,
        isthmus: &isthmus,
        overlays: &[],
        packages,
        target_dir: &target,
    };
    let first = build(&spec, &out).unwrap();
    eprintln!("{}: {} bytes", out.display(), first.bytes);
    assert_eq!(first.missing_modules, [""; 0]);
    assert!(!packages.is_empty() || first.bytes <= LIMIT_BYTES);
    let bytes = std::fs::read(&out).unwrap();
    build(&spec, &out).unwrap();
    assert!(std::fs::read(&out).unwrap() == bytes, "the same input makes the same file");
    (package.vmlinuz, out)
}

/// Boots in QEMU without the hypervisor and runs each command; gives status and output.
fn run(kernel: &Path, root: &Path, commands: &[&str]) -> Vec<(u8, String)> {
    let dir = std::env::temp_dir().join(format!("xtask-root-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let socket = dir.join("com2");
    let listener = UnixListener::bind(&socket).unwrap();
    let disk = dir.join("disk");
    std::fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-M", "q35", "-cpu", "EPYC", "-m", "512", "-display", "none", "-nodefaults", "-no-reboot"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(root)
        .args(["-append", "console=ttyS0"])
        .args(["-serial", &format!("file:{}", dir.join("com1").display())])
        .args(["-chardev", &format!("socket,id=com2,path={}", socket.display()), "-serial", "chardev:com2"])
        .args(["-drive", &format!("file={},format=raw,if=none,id=disk", disk.display())])
        .args(["-device", "ide-hd,drive=disk", "-netdev", "user,id=net", "-device", "e1000e,netdev=net"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    let deadline = started + Duration::from_secs(120);
    let connected = Channel::connect(listener.accept().unwrap().0, deadline);
    let results = connected.map(|mut channel| {
        eprintln!("agent reached after {:?}", started.elapsed());
        let results: Vec<_> = commands
            .iter()
            .map(|command| {
                let mut out = Vec::new();
                let status = channel.run(command, &mut out, &mut std::io::stderr(), deadline).unwrap();
                (status, String::from_utf8(out).unwrap())
            })
            .collect();
        channel.power_off(deadline).unwrap();
        results
    });
    if results.is_err() {
        qemu.kill().unwrap();
    }
    let status = qemu.wait().unwrap();
    let log = std::fs::read(dir.join("com1")).unwrap();
    let log = String::from_utf8_lossy(&log).into_owned();
    std::fs::remove_dir_all(&dir).unwrap();
    let results = results.unwrap_or_else(|failure| panic!("{failure}; console:\n{log}"));
    assert!(status.success() && log.contains("isthmus: dom0 is up"), "{log}");
    results
}

#[test]
#[ignore = "downloads kernels and boots them in QEMU"]
fn dom0s_root_boots_without_the_hypervisor() {
    for series in [Series::V6_1, Series::V6_12] {
        let (kernel, root) = made(series, &[]);
        let results = run(
            &kernel,
            &root,
            &[
                "uname -r; id -u; cat /proc/mounts | grep -c devpts",
                "for i in $(seq 50); do [ -b /dev/sda ] && break; usleep 100000; done; cat /sys/block/sda/size",
                "for i in $(seq 100); do ip a | grep -q 10.0.2.15 && break; usleep 100000; done; ip route; cat /etc/resolv.conf",
                "printf 'a\\r\\n\\377' | od -An -tx1; exit 9",
                "mkdir -p /mnt/d && mke2fs -q /dev/sda >/dev/null && mount -t ext4 /dev/sda /mnt/d && echo mounted",
                "cat /proc/modules | cut -d' ' -f1 | xargs",
                "dmesg | grep -i -e 'error' -e 'fail' -e 'tainted'",
                "isthmus selftest clock",
                "isthmus info 2>&1",
                "cat /proc/uptime; dd if=/dev/zero bs=1k count=1000 2>/dev/null | tr '\\0' x | md5sum",
            ],
        );
        for (status, output) in &results {
            eprintln!("[{status}] {output}");
        }
        assert!(results[0].1.ends_with("\n0\n1\n"));
        assert_eq!(results[1], (0, "131072\n".to_owned()));
        assert!(results[2].1.contains("default via 10.0.2.2"));
        assert_eq!(results[3], (9, " 61 0d 0a ff\n".to_owned()));
        assert_eq!(results[4], (0, "mounted\n".to_owned()));
        assert_eq!(results[7].0, 0, "{}", results[7].1);
        assert!(results[8].0 == 1 && results[8].1.contains("no hypervisor"), "{}", results[8].1);
    }
}

#[test]
#[ignore = "downloads kernels and packages and boots them in QEMU"]
fn packages_bring_their_libraries() {
    let (kernel, root) = made(Series::V6_1, &["e2fsprogs".to_owned()]);
    let results = run(&kernel, &root, &["/sbin/mke2fs -V 2>&1 | head -1; dumpe2fs -V"]);
    assert_eq!(results[0].0, 0);
    assert!(results[0].1.starts_with("mke2fs 1."), "{}", results[0].1);
}
