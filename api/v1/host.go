// Package v1 holds the types of the JSON that kedge prints and reads: status,
// plan, history, progress and errors. It has no behaviour beyond encoding.
//
// Host is bootc's BootcHost (apiVersion org.containers.bootc/v1): programs
// written for `bootc status --json` read kedge's. What bootc does not have
// stands beside it in objects named kedge, never under another name for the
// same thing. Names, presence and null follow bootc 1.16: a field is left out
// only where bootc leaves it out. The JSON schemas generated from these types
// are in docs/schema.
package v1

import (
	"encoding/json"
	"fmt"
	"time"
)

// What every Host carries in its first three fields.
const (
	APIVersion = "org.containers.bootc/v1"
	Kind       = "BootcHost"
	ObjectName = "host"
)

// Host is what is booted, staged and kept on a host, and what it follows.
type Host struct {
	APIVersion string     `json:"apiVersion"`
	Kind       string     `json:"kind"`
	Metadata   ObjectMeta `json:"metadata"`
	Spec       HostSpec   `json:"spec"`
	Status     HostStatus `json:"status"`
}

// NewHost returns a Host without deployments.
func NewHost() *Host {
	return &Host{
		APIVersion: APIVersion,
		Kind:       Kind,
		Metadata:   ObjectMeta{Name: ObjectName},
		Spec:       HostSpec{BootOrder: BootOrderDefault},
	}
}

// ObjectMeta is the part of Kubernetes' object metadata that bootc keeps.
type ObjectMeta struct {
	Annotations map[string]string `json:"annotations,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Name        string            `json:"name,omitempty"`
	Namespace   string            `json:"namespace,omitempty"`
}

// BootOrder says which deployment the next boot takes.
type BootOrder string

// The boot orders.
const (
	BootOrderDefault  BootOrder = "default"  // the staged or booted deployment
	BootOrderRollback BootOrder = "rollback" // the rollback deployment
)

// HostSpec is what the host is asked to be.
type HostSpec struct {
	// Image is the reference that upgrades follow; null where the host does
	// not run a container image.
	Image     *ImageReference `json:"image"`
	BootOrder BootOrder       `json:"bootOrder"`
}

// ImageReference names an image: where it is and how it is trusted.
type ImageReference struct {
	// Image is the name without its transport, such as quay.io/org/os:latest.
	Image string `json:"image"`
	// Transport is registry, oci, oci-archive, dir or containers-storage.
	Transport string `json:"transport"`
	// Signature is left out where the reference does not ask for a signature.
	Signature *ImageSignature `json:"signature,omitempty"`
}

// ImageSignature is how an image's signature is checked: "containerPolicy",
// "insecure" or {"ostreeRemote": NAME}.
type ImageSignature struct {
	// Kind is SignatureContainerPolicy, SignatureInsecure or
	// SignatureOSTreeRemote.
	Kind string
	// Remote names the ostree remote whose keys are used.
	Remote string
}

// The kinds of ImageSignature.
const (
	SignatureContainerPolicy = "containerPolicy"
	SignatureInsecure        = "insecure"
	SignatureOSTreeRemote    = "ostreeRemote"
)

// MarshalJSON encodes the signature as bootc does: a string, or an object for
// the kind that has a parameter.
func (s ImageSignature) MarshalJSON() ([]byte, error) {
	if s.Kind == SignatureOSTreeRemote {
		return json.Marshal(map[string]string{SignatureOSTreeRemote: s.Remote})
	}
	return json.Marshal(s.Kind)
}

// UnmarshalJSON decodes both forms and refuses a kind it does not know.
func (s *ImageSignature) UnmarshalJSON(b []byte) error {
	var kind string
	if err := json.Unmarshal(b, &kind); err == nil {
		if kind != SignatureContainerPolicy && kind != SignatureInsecure {
			return fmt.Errorf("image signature %q is not known", kind)
		}
		*s = ImageSignature{Kind: kind}
		return nil
	}
	var remote map[string]string
	if err := json.Unmarshal(b, &remote); err != nil {
		return fmt.Errorf("image signature: %w", err)
	}
	name, ok := remote[SignatureOSTreeRemote]
	if !ok || len(remote) != 1 {
		return fmt.Errorf("image signature has no %s", SignatureOSTreeRemote)
	}
	*s = ImageSignature{Kind: SignatureOSTreeRemote, Remote: name}
	return nil
}

// HostStatus is what is on the host.
type HostStatus struct {
	// Staged is put in place at shutdown and booted next.
	Staged *BootEntry `json:"staged"`
	// Booted is what runs; null for a sysroot that is not booted.
	Booted *BootEntry `json:"booted"`
	// Rollback is where `kedge rollback` leads.
	Rollback *BootEntry `json:"rollback"`
	// OtherDeployments are the rest in boot order: pinned ones, other
	// stateroots, and on a sysroot that is not booted the default deployment.
	OtherDeployments []BootEntry `json:"otherDeployments,omitempty"`
	// RollbackQueued says that Rollback comes before Booted in boot order.
	RollbackQueued bool `json:"rollbackQueued"`
	// Type is "bootcHost" where the booted deployment is a container image.
	Type       *string      `json:"type"`
	UsrOverlay *UsrOverlay  `json:"usrOverlay"`
	ReadOnly   bool         `json:"readOnly"`
	Kedge      *KedgeStatus `json:"kedge,omitempty"`
}

// TypeBootcHost is the one value of HostStatus.Type.
const TypeBootcHost = "bootcHost"

// UsrOverlay is the state of an overlay mounted on /usr.
type UsrOverlay struct {
	AccessMode  string `json:"accessMode"`  // readOnly or readWrite
	Persistence string `json:"persistence"` // transient or persistent
}

// BootEntry is one deployment.
type BootEntry struct {
	// Image is null where the deployment is no container image, or carries
	// client-side changes that bootc would lose.
	Image        *ImageStatus `json:"image"`
	CachedUpdate *ImageStatus `json:"cachedUpdate"`
	// Incompatible says that the origin has groups bootc does not understand.
	Incompatible      bool `json:"incompatible"`
	Pinned            bool `json:"pinned"`
	SoftRebootCapable bool `json:"softRebootCapable"`
	// DownloadOnly says that a staged deployment waits for --from-downloaded.
	DownloadOnly bool                `json:"downloadOnly"`
	Store        *string             `json:"store"`
	OSTree       *BootEntryOSTree    `json:"ostree"`
	Composefs    *BootEntryComposefs `json:"composefs"`
	Kedge        *KedgeEntry         `json:"kedge,omitempty"`
}

// StoreOSTreeContainer is BootEntry.Store of the ostree backend.
const StoreOSTreeContainer = "ostreeContainer"

// ImageStatus is an image that was resolved to a digest.
type ImageStatus struct {
	Image        ImageReference `json:"image"`
	Version      *string        `json:"version"`
	Timestamp    *time.Time     `json:"timestamp"`
	ImageDigest  string         `json:"imageDigest"`
	Architecture string         `json:"architecture"`
}

// BootEntryOSTree is a deployment of the ostree backend.
type BootEntryOSTree struct {
	Stateroot    string `json:"stateroot"`
	Checksum     string `json:"checksum"`
	DeploySerial uint32 `json:"deploySerial"`
}

// BootEntryComposefs is a deployment of the composefs backend.
type BootEntryComposefs struct {
	Verity               string  `json:"verity"`
	BootType             string  `json:"bootType"`   // Bls or Uki
	Bootloader           string  `json:"bootloader"` // grub, grub-cc, systemd or none
	BootDigest           *string `json:"bootDigest"`
	MissingVerityAllowed bool    `json:"missingVerityAllowed"`
}
