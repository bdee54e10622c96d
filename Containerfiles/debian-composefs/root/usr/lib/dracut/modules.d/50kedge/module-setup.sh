#!/bin/bash
# The dracut module that puts kedge-initramfs into an initramfs: the program that
# mounts the image named by composefs= on the kernel command line as the root.
#
# Where its parts belong in an image:
#   /usr/lib/dracut/modules.d/50kedge/   this file and the unit beside it
#   /usr/lib/kedge/kedge-initramfs       the program
# then: dracut --add kedge …

# 255: only where somebody asks for it with --add. An initramfs made on a laptop
# for the laptop has no use for it.
check() {
    require_binaries /usr/lib/kedge/kedge-initramfs || return 1
    return 255
}

# The order of a boot is systemd's: the unit hangs between its targets.
depends() {
    echo systemd
}

# erofs is the image's file system, overlay joins it with the files' contents, and
# loop stands in where the kernel cannot mount EROFS from a file (before 6.12).
# fs-verity is part of the kernel proper; the hash it uses here may be a module,
# which the kernel asks for by itself when it finds the first sealed file.
installkernel() {
    instmods erofs overlay loop sha512_generic sha512_ssse3 sha512_arm64_ce sha512_ce
}

install() {
    inst /usr/lib/kedge/kedge-initramfs
    inst_simple "$moddir/kedge-root-setup.service" \
        "$systemdsystemunitdir/kedge-root-setup.service"
    $SYSTEMCTL -q --root "$initdir" add-wants initrd-root-fs.target kedge-root-setup.service

    # How this image wants /etc and /var mounted, if it says so. The root is not
    # mounted yet when this is read, so a copy travels in the initramfs.
    if [[ -e /usr/lib/composefs/setup-root-conf.toml ]]; then
        inst_simple /usr/lib/composefs/setup-root-conf.toml
    fi
}
