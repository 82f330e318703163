use super::*;

fn run(address: u64, pages: u64) -> Run {
    Run {
        address: address * page_size(),
        pages,
    }
}

fn mapping(start: u64, end: u64, status: u64) -> Message {
    let field = |number, value| Field {
        number,
        value: Value::Varint(value),
    };
    Message(vec![
        field(vma_entry::START, start * page_size()),
        field(vma_entry::END, end * page_size()),
        field(vma_entry::PGOFF, 0),
        field(vma_entry::SHMID, 0),
        field(
            vma_entry::FLAGS,
            (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64,
        ),
        field(vma_entry::STATUS, status),
        field(4000, 7),
    ])
}

#[test]
fn nearby_pages_become_one_run_and_no_page_is_lost() {
    // Two groups in the first mapping, the second group cut by the end of the first mapping.
    let runs = [run(100, 10), run(112, 10), run(130, 20), run(400, 1)];
    let groups = [run(100, 22), run(130, 16)];
    let new = joined(&runs, &groups);
    assert_eq!(new, [run(100, 22), run(130, 16), run(146, 4), run(400, 1)]);
    let kept = without(&new, &groups);
    let page = page_size();
    assert_eq!(kept, [(run(146, 4), 38 * page), (run(400, 1), 42 * page)]);
    assert_eq!(
        regions(&new, &groups)[1],
        Region {
            run: run(130, 16),
            offset: 22 * page
        }
    );
}

#[test]
fn pages_are_where_the_new_runs_say_with_zeros_between() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    let page = page_size() as usize;
    let content: Vec<u8> = (1..=5_u8).flat_map(|n| vec![n; page]).collect();
    fs::write(&from, content).unwrap();
    let old = [run(10, 2), run(14, 1), run(50, 2)];
    let new = [run(10, 5), run(50, 2)];
    spread(&from, &to, &old, &new).unwrap();
    let bytes = fs::read(&to).unwrap();
    let firsts: Vec<u8> = bytes.chunks(page).map(|page| page[0]).collect();
    assert_eq!(firsts, [1, 2, 0, 0, 3, 4, 5]);
    assert!(
        bytes
            .chunks(page)
            .all(|page| page.iter().all(|b| *b == page[0]))
    );
}

#[test]
fn a_mapping_is_cut_into_what_is_mapped_and_what_is_not() {
    let anonymous = mapping(100, 200, vma_entry::REGULAR | vma_entry::ANON_PRIVATE);
    let region = |address, pages, offset| Region {
        run: run(address, pages),
        offset,
    };
    let regions = [region(20, 20, 0), region(100, 20, 8), region(150, 50, 16)];
    let pieces = divide(&anonymous, &regions, 77);
    let ends: Vec<_> = pieces.iter().map(|piece| extent(piece).unwrap()).collect();
    let page = page_size();
    assert_eq!(
        ends,
        [(100, 120), (120, 150), (150, 200)].map(|(a, b)| (a * page, b * page))
    );
    let statuses: Vec<_> = pieces.iter().map(|m| m.number(vma_entry::STATUS)).collect();
    assert_eq!(
        statuses,
        [Some(1 | 1 << 6), Some(1 | 1 << 9), Some(1 | 1 << 6)]
    );
    assert_eq!(pieces[2].number(vma_entry::PGOFF), Some(16));
    assert_eq!(pieces[2].number(vma_entry::SHMID), Some(77));
    assert_eq!(pieces[2].number(4000), Some(7));
    // A stack, and a file.
    for status in [
        vma_entry::REGULAR | 1 << 1 | vma_entry::ANON_PRIVATE,
        1 | 1 << 6,
    ] {
        let other = mapping(100, 200, status);
        assert_eq!(divide(&other, &regions, 77), [other]);
    }
}

#[test]
fn ranges_are_covered_by_few_and_the_widest_gaps_stay() {
    let ranges = vec![(50, 60), (0, 10), (10, 20), (24, 30), (1000, 1001)];
    assert_eq!(
        cover(ranges.clone(), 10),
        [(0, 20), (24, 30), (50, 60), (1000, 1001)]
    );
    assert_eq!(cover(ranges.clone(), 2), [(0, 60), (1000, 1001)]);
    assert_eq!(cover(ranges, 1), [(0, 1001)]);
}

#[test]
fn runs_are_in_order_and_where_memory_can_be() {
    use super::super::process::are_in_order;
    assert!(are_in_order(&[run(1, 2), run(3, 1), run(9, 1)]));
    let beyond = Run {
        address: 0,
        pages: u64::MAX,
    };
    for bad in [
        &[run(3, 1), run(1, 1)][..],
        &[run(1, 2), run(2, 1)],
        &[beyond],
        &[run(1 << 44, 1)],
        &[Run {
            address: 1,
            pages: 1,
        }],
    ] {
        assert!(!are_in_order(bad), "{bad:?}");
    }
}
