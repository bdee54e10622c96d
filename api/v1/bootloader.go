package v1

// Bootloader is what is known of the program that starts the host.
type Bootloader struct {
	// Name is what kedge writes for: systemd-boot, grub, or none, where the boot
	// loader reads /boot/loader/entries itself.
	Name string `json:"name"`
	// Info is what started the running machine, as it says itself: "systemd-boot
	// 257.9-1"; left out where it says nothing, or the host is not booted.
	Info string `json:"info,omitempty"`
	// SecureBoot is enabled, disabled or unknown; left out where the host is not
	// booted.
	SecureBoot string `json:"secureBoot,omitempty"`
}
