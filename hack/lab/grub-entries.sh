#!/usr/bin/env bash
# Makes a GRUB that reads boot entries, as Fedora's does, from the modules of
# Debian sid's (2.14 is the first of upstream's that can), and lays it out as
# Fedora's packages do for bootupd. Prints the directory that holds its usr; what
# it does goes to stderr. A minute once, nothing afterwards.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
. "$lab_dir/steps.sh"

out=$kedge_cache/grub-entries-$(recipe_key "${BASH_SOURCE[0]}" "$lab_dir/steps.sh")
only_one grub-entries
if [ ! -e "$out" ]; then
  workplace grub-entries
  say "a GRUB that reads boot entries, of Debian sid's modules (mmdebstrap)"
  # shellcheck disable=SC2016 # the hook's own argument
  logged mmdebstrap --mode=root --variant=apt --include=grub-common,grub-efi-amd64-bin \
    --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Retries "3"' \
    --aptopt='Apt::Install-Recommends "false"' \
    --customize-hook='printf "sbat,1,SBAT Version,sbat,1,https://github.com/rhboot/shim/blob/main/SBAT.md\ngrub.fedora,1,The lab,grub2,2.14-1,https://example.org\n" >"$1/run/sbat.csv"' \
    --customize-hook='chroot "$1" grub-mkimage --format x86_64-efi --prefix /EFI/fedora --sbat /run/sbat.csv --output /grubx64.efi part_gpt fat ext2 xfs btrfs normal configfile search search_fs_uuid test echo true linux gzio zstd blsuki serial terminal efi_gop all_video reboot' \
    --customize-hook="copy-out /grubx64.efi $work" \
    sid /dev/null
  tree=$work/new/usr/lib/bootupd
  install -D -m 644 "$work/grubx64.efi" "$tree/updates/EFI/fedora/grubx64.efi"
  install -D -m 644 "$work/grubx64.efi" "$tree/updates/EFI/BOOT/BOOTX64.EFI"
  mkdir "$tree/grub2-static"
  chmod 755 "$work/new"
  mv -T "$work/new" "$out"
fi
echo "$out"
