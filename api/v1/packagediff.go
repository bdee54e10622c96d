package v1

// PackageDiff is one package in which two roots differ.
type PackageDiff struct {
	Name   string `json:"name"`
	Arch   string `json:"arch"`
	Change string `json:"change"` // added, removed, upgraded or downgraded
	// From and To are the versions: [EPOCH:]VERSION-RELEASE of an RPM, without an
	// epoch of 0, or dpkg's version; "" where the package is not there.
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
}
