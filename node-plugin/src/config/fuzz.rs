//! Values as people write them, and what the kernel says of memory.

use std::fs;

use weir_fuzz::near_texts;

use super::fstab::to_flags;
use super::memory::cgroup_limit;
use super::size::{Amount, Size};

#[test]
fn a_size_of_any_text_is_what_its_number_and_its_unit_say() {
    near_texts(&["500MiB", "20GiB", "1073741824", "7 kb", "16777215T", "10%", "100%"], |text| {
        if let Ok(amount @ Amount::Percent(_)) = text.parse::<Amount>() {
            for whole in [0, 1, u64::MAX] {
                assert!(amount.of(whole) <= whole);
            }
        }
        let Ok(Size(bytes)) = text.parse::<Size>() else { return };
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        let number: u64 = digits.parse().unwrap();
        assert!(bytes.checked_div(number).is_none_or(|unit| unit.is_power_of_two()));
        assert!(Size(bytes).to_string().len() <= 12, "{}", Size(bytes));
    });
}

#[test]
fn mount_options_of_any_text_become_one_option_each_and_its_value() {
    let real = ["ro,_netdev,allow_other,region=eu-west-1", "metadata-ttl 5,--prefix=a b", "x-a"];
    near_texts(&real, |text| {
        let flags = to_flags(text);
        let options = text.split(',').filter(|option| !option.trim().is_empty()).count();
        let names = flags.iter().filter(|flag| flag.to_str().unwrap().starts_with("--")).count();
        assert!(flags.len() <= 2 * options && (names > 0 || flags.is_empty()));
        assert!(flags.iter().all(|flag| !flag.to_str().unwrap().contains(',')));
        if let Some(first) = flags.first() {
            assert!(first.to_str().unwrap().starts_with("--"));
        }
    });
}

#[test]
fn a_limit_is_read_below_the_folder_of_cgroups_alone() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("cgroup");
    fs::create_dir_all(root.join("pods/one")).unwrap();
    fs::write(root.join("pods/one/memory.max"), "1000\n").unwrap();
    fs::write(root.join("pods/memory.max"), "2000\n").unwrap();
    // Nobody's limit.
    fs::write(dir.path().join("memory.max"), "1\n").unwrap();
    near_texts(&["0::/pods/one\n", "3:memory:/pods\n0::/pods\n", "0::/../pods\n"], |text| {
        let limit = cgroup_limit(text, &root);
        assert!(matches!(limit, None | Some(1000 | 2000)), "{limit:?}");
    });
}
