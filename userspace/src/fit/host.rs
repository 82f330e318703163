//! Whether the host is one that the image can run on, and the one that its server knows.

use std::collections::BTreeSet;

use super::{Code, Finding, Here};
use crate::{
    criu,
    host::{Host, Surroundings, parse_version},
    store::Manifest,
};

/// The flags in /proc/cpuinfo of x86 that are instructions or state of user mode. The others tell of the
/// kernel, of mitigations and of virtual machines, and change with a kernel or microcode.
///
/// See `arch/x86/include/asm/cpufeatures.h` of the kernel. New instruction sets that begin with one of
/// `FAMILIES` need not be added.
const INSTRUCTIONS: [&str; 78] = [
    "3dnow",
    "3dnowext",
    "3dnowprefetch",
    "abm",
    "adx",
    "aes",
    "bmi1",
    "bmi2",
    "cldemote",
    "clflush",
    "clflushopt",
    "clwb",
    "clzero",
    "cmov",
    "cx16",
    "cx8",
    "enqcmd",
    "erms",
    "f16c",
    "fma",
    "fma4",
    "fpu",
    "fsgsbase",
    "fsrm",
    "fxsr",
    "gfni",
    "hle",
    "lahf_lm",
    "lm",
    "lwp",
    "misalignsse",
    "mmx",
    "mmxext",
    "monitorx",
    "movbe",
    "movdir64b",
    "movdiri",
    "mpx",
    "mwaitx",
    "ospke",
    "pclmulqdq",
    "pku",
    "pni",
    "popcnt",
    "prefetchwt1",
    "ptwrite",
    "rdpid",
    "rdpru",
    "rdrand",
    "rdseed",
    "rdtscp",
    "rtm",
    "serialize",
    "sha512",
    "sha_ni",
    "sm3",
    "sm4",
    "ssse3",
    "syscall",
    "tbm",
    "tsc",
    "tsxldtrk",
    "uintr",
    "user_shstk",
    "vaes",
    "vpclmulqdq",
    "waitpkg",
    "wbnoinvd",
    "xgetbv1",
    "xop",
    "xsave",
    "xsavec",
    "xsaveopt",
    "xsaves",
    "cmpccxadd",
    "fzrm",
    "fsrs",
    "fsrc",
];

const FAMILIES: [&str; 4] = ["avx", "amx_", "sse", "apx"];

/// What of the host can break the image.
pub fn fit(manifest: &Manifest, here: &Here) -> Vec<Finding> {
    let (then, now) = (&manifest.host, &here.host);
    if then.architecture != now.architecture {
        // Nothing else has a meaning then.
        let (then, now) = (&then.architecture, &now.architecture);
        return vec![Finding::new(Code::Architecture, "processor", then, now)];
    }
    let mut findings = Vec::new();
    if then.page_size != now.page_size {
        let bytes = |size: usize| format!("{size} bytes");
        let (then, now) = (bytes(then.page_size), bytes(now.page_size));
        findings.push(Finding::new(Code::PageSize, "pages of memory", then, now));
    }
    findings.extend(missing_features(then, now));
    // What a program has learnt of a kernel stays true in newer ones.
    if parse_version(&now.kernel) < parse_version(&then.kernel) {
        let (then, now) = (&then.kernel, &now.kernel);
        findings.push(Finding::new(Code::Kernel, "Linux", then, now));
    }
    findings.extend(criu_fit(manifest.criu.version, here));
    findings
}

fn missing_features(then: &Host, now: &Host) -> Option<Finding> {
    if then.cpu_features == now.cpu_features {
        return None;
    }
    let has: BTreeSet<&str> = now.cpu_features.iter().map(String::as_str).collect();
    // Arm's are those that the kernel tells programs of.
    let is_all = !then.architecture.starts_with("x86") && then.architecture != "i686";
    let matters = |feature: &&str| {
        is_all
            || INSTRUCTIONS.contains(feature)
            || FAMILIES.iter().any(|family| feature.starts_with(family))
    };
    let used = then.cpu_features.iter().map(String::as_str);
    let missing: Vec<&str> = used
        .filter(|feature| !has.contains(feature))
        .filter(matters)
        .collect();
    let about = missing.join(" ");
    (!missing.is_empty()).then(|| Finding::new(Code::CpuFeatures, about, "there", "not there"))
}

fn criu_fit(then: criu::Version, here: &Here) -> Option<Finding> {
    // CRIU reads what older versions wrote, and what newer ones wrote at best in part: see its pull
    // request 2128 and its issue 2847.
    let needed = then.max(criu::required_version(parse_version(&here.host.kernel)));
    let found = match here.criu {
        Some(found) if found >= needed => return None,
        Some(found) => found.to_string(),
        None => "none".to_owned(),
    };
    let needed = format!("{needed} or later");
    Some(Finding::new(Code::Criu, "CRIU", needed, found))
}

/// What of the host the server may have made something of.
pub fn staleness(manifest: &Manifest, here: &Here) -> Vec<Finding> {
    let then = manifest.surroundings.as_ref();
    then.map_or_else(Vec::new, |then| compare(then, &here.surroundings))
}

fn compare(then: &Surroundings, now: &Surroundings) -> Vec<Finding> {
    let mut findings = Vec::new();
    if then.hostname != now.hostname {
        let (then, now) = (&then.hostname, &now.hostname);
        findings.push(Finding::new(Code::Hostname, "hostname", then, now));
    }
    if then.processors != now.processors {
        let (then, now) = (then.processors.to_string(), now.processors.to_string());
        findings.push(Finding::new(Code::Processors, "processors", then, now));
    }
    // A kernel takes a little more or less for itself.
    if then.memory_bytes.abs_diff(now.memory_bytes) > then.memory_bytes / 10 {
        let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
        let (then, now) = (mib(then.memory_bytes), mib(now.memory_bytes));
        findings.push(Finding::new(Code::Memory, "memory", then, now));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::manifest;

    fn here() -> Here {
        Here {
            host: Host {
                kernel: "6.18.4".into(),
                architecture: "x86_64".into(),
                page_size: 4096,
                cpu_features: ["fpu", "sse2", "avx2", "md_clear"]
                    .map(str::to_owned)
                    .into(),
                boot_id: "now".into(),
            },
            surroundings: Surroundings {
                hostname: "shop-1".into(),
                processors: 4,
                memory_bytes: 8 << 30,
            },
            criu: Some(criu::Version(4, 2, 1)),
            environment: vec![],
        }
    }

    fn found(change: impl FnOnce(&mut Manifest, &mut Here)) -> Vec<(Code, String)> {
        let (mut manifest, mut here) = (manifest(1), here());
        manifest.host = here.host.clone();
        manifest.host.boot_id = "then".into();
        manifest.surroundings = Some(here.surroundings.clone());
        change(&mut manifest, &mut here);
        let findings = [fit(&manifest, &here), staleness(&manifest, &here)].concat();
        let text = |finding: Finding| {
            let Finding {
                about,
                expected,
                found,
                ..
            } = &finding;
            (finding.code, format!("{about}: {expected}, {found}"))
        };
        findings.into_iter().map(text).collect()
    }

    #[test]
    fn the_same_host_fits_after_a_reboot_too() {
        assert_eq!(found(|_, _| ()), []);
    }

    #[test]
    fn another_architecture_is_all_there_is_to_say() {
        let findings = found(|image, _| {
            image.host.architecture = "aarch64".into();
            image.host.page_size = 65536;
        });
        let text = "processor: aarch64, x86_64".to_owned();
        assert_eq!(findings, [(Code::Architecture, text)]);
    }

    #[test]
    fn pages_of_another_size_do_not_fit() {
        let findings = found(|image, _| image.host.page_size = 16384);
        let text = "pages of memory: 16384 bytes, 4096 bytes".to_owned();
        assert_eq!(findings, [(Code::PageSize, text)]);
    }

    #[test]
    fn instructions_that_are_missing_matter_and_other_flags_do_not() {
        let findings = found(|image, here| {
            let more = ["avx512_new", "amx_tile", "ibrs_enhanced", "gfni"];
            image.host.cpu_features.extend(more.map(str::to_owned));
            here.host.cpu_features.push("avx10".into());
            here.host.cpu_features.retain(|flag| flag != "md_clear");
        });
        let text = "avx512_new amx_tile gfni: there, not there".to_owned();
        assert_eq!(findings, [(Code::CpuFeatures, text)]);
        let arm = found(|image, here| {
            image.host.architecture = "aarch64".into();
            here.host.architecture = "aarch64".into();
            image.host.cpu_features = vec!["fp".into(), "atomics".into()];
            here.host.cpu_features = vec!["fp".into()];
        });
        let text = "atomics: there, not there".to_owned();
        assert_eq!(arm, [(Code::CpuFeatures, text)]);
    }

    #[test]
    fn a_kernel_may_be_newer_and_not_older() {
        assert_eq!(found(|_, here| here.host.kernel = "6.18.1".into()), []);
        assert_eq!(found(|image, _| image.host.kernel = "5.10.0".into()), []);
        let findings = found(|image, _| image.host.kernel = "6.19.0".into());
        let text = "Linux: 6.19.0, 6.18.4".to_owned();
        assert_eq!(findings, [(Code::Kernel, text)]);
    }

    #[test]
    fn criu_may_be_newer_and_must_suit_the_kernel() {
        let version = |image, here: Option<criu::Version>| {
            found(|manifest, now| {
                manifest.criu.version = image;
                now.criu = here;
            })
        };
        let of = criu::Version;
        assert_eq!(version(of(4, 2, 1), Some(of(5, 0, 0))), []);
        let text = |needed, found| {
            let text = format!("CRIU: {needed} or later, {found}");
            vec![(Code::Criu, text)]
        };
        assert_eq!(
            version(of(4, 3, 0), Some(of(4, 2, 1))),
            text("4.3", "4.2.1")
        );
        // For Linux 6.18.
        assert_eq!(version(of(3, 19, 0), Some(of(4, 1, 0))), text("4.2", "4.1"));
        assert_eq!(version(of(4, 2, 1), None), text("4.2.1", "none"));
    }

    #[test]
    fn what_servers_are_sized_by_is_compared() {
        let findings = found(|_, here| {
            here.surroundings = Surroundings {
                hostname: "shop-2".into(),
                processors: 2,
                memory_bytes: 4 << 30,
            }
        });
        let expected = [
            (Code::Hostname, "hostname: shop-1, shop-2"),
            (Code::Processors, "processors: 4, 2"),
            (Code::Memory, "memory: 8192 MiB, 4096 MiB"),
        ];
        assert_eq!(
            findings,
            expected.map(|(code, text)| (code, text.to_owned()))
        );
        let little = (8 << 30) - (100 << 20);
        assert_eq!(found(|_, here| here.surroundings.memory_bytes = little), []);
        assert_eq!(found(|image, _| image.surroundings = None), []);
    }
}
