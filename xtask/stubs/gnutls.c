/*
 * Takes the place of libgnutls, which CRIU needs to send pages to another host over TLS and is
 * never asked to by warmimg. What CRIU 4.0 to 4.2 refer to; `cargo xtask setup` has the loader
 * look whether that is all.
 */
#include "stub.h"

void (*gnutls_free)(void *) = free;

ABORTS(gnutls_bye)
ABORTS(gnutls_certificate_allocate_credentials)
ABORTS(gnutls_certificate_free_credentials)
ABORTS(gnutls_certificate_send_x509_rdn_sequence)
ABORTS(gnutls_certificate_server_set_request)
ABORTS(gnutls_certificate_set_x509_crl_file)
ABORTS(gnutls_certificate_set_x509_key_file)
ABORTS(gnutls_certificate_set_x509_system_trust)
ABORTS(gnutls_certificate_set_x509_trust_file)
ABORTS(gnutls_certificate_type_get)
ABORTS(gnutls_certificate_verification_status_print)
ABORTS(gnutls_certificate_verify_peers3)
ABORTS(gnutls_credentials_set)
ABORTS(gnutls_deinit)
ABORTS(gnutls_error_is_fatal)
ABORTS(gnutls_handshake)
ABORTS(gnutls_init)
ABORTS(gnutls_packet_deinit)
ABORTS(gnutls_packet_get)
ABORTS(gnutls_record_check_pending)
ABORTS(gnutls_record_recv)
ABORTS(gnutls_record_recv_packet)
ABORTS(gnutls_record_send)
ABORTS(gnutls_set_default_priority)
ABORTS(gnutls_strerror)
ABORTS(gnutls_transport_set_ptr)
ABORTS(gnutls_transport_set_pull_function)
ABORTS(gnutls_transport_set_push_function)
