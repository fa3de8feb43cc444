"""The operations of the Maesn API: path, status, body, response and parameters of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

# Columns: method, path, status of a success, body, data of the response, parameters. Status: 202 means that the
# response names a task; "201|202" means that it may name a task instead of the record. Body: "json"; for a multipart
# form, the field with the JSON, "+", and the field with the files; "-": none. Data: a kind of record (records.py),
# [several], "text" or "any"; "<...>": a response without the envelope. The reference itself says that a single item and
# a single fiscal year are returned as a list of one. Parameters: page (with limit), since (lastModifiedAt), env
# (environmentName), co (companyId), raw (rawData); "!": required. From version 0.6.1 of the reference. "+" in front:
# added or changed in version 0.8.21.
_TABLE: Final = """
  GET    accounting/accounts                              200 -    [account]   page since env co raw debitCreditIndicator fiscalYear types fiscalYearStartDate classFilter isActive
  POST   accounting/accounts                              201 json account     env co
  GET    accounting/accounts/{accountId}                  200 -    account     env co raw
  GET    accounting/asyncTask/{taskId}                    200 -    task        page co
  GET    accounting/bankAccounts                          200 -    [bankAccount] page since env co raw
  POST   accounting/bankAccounts                          201 json bankAccount env co
  GET    accounting/bankAccounts/{bankAccountId}          200 -    bankAccount env co raw
  POST   accounting/batch/contacts                        201|202 json contactBatch co
  GET    accounting/bills                                 200 -    [bill]      page since env co raw status paymentStatus orderField orderDir
  POST   accounting/bills                                 201 json bill        env co
  GET    accounting/bills/{billId}                        200 -    bill        env co raw
  PUT    accounting/bills/{billId}                        200 json bill        env co
  DELETE accounting/bills/{billId}                        200 -    text        env co
  GET    accounting/bills/{billId}/document               200 -    document
  GET    accounting/bills/{billId}/lineItems              200 -    [billLine]  co raw
  POST   accounting/bills/{billId}/lineItems              201 json [billLine]  co
  PUT    accounting/bills/{billId}/lineItems/{lineItemId} 200 json [billLine]  co
+ GET    accounting/bookingProposals                      200|202 - [bookingProposal] page since env co raw bookingType status orderField orderDir
  POST   accounting/bookingProposals                      201 bookingProposal+files bookingProposal co
  GET    accounting/bookingProposals/{bookingProposalId}  200 -    bookingProposal env co raw
  GET    accounting/bookingProposals/{bookingProposalId}/document 200 - document
  GET    accounting/contacts                              200 -    [contact]   page since env co raw
  POST   accounting/contacts                              201 json contact     env co
+ POST   accounting/contacts/async                        202 json taskId      co
  POST   accounting/contacts/bulk                         201|202 json contactBatch co
  GET    accounting/contacts/{contactId}                  200 -    contact     env co raw
  PUT    accounting/contacts/{contactId}                  200 json contact     env co
  PATCH  accounting/contacts/{contactId}                  200 json contact     env co
  GET    accounting/creditNotes                           200 -    [creditNote] page since env co raw
  GET    accounting/creditNotes/{creditNoteId}            200 -    creditNote  env co raw
  GET    accounting/customers                             200 -    [party]     page since env co raw email name number
  POST   accounting/customers                             201 json party       env co
  GET    accounting/customers/{contactId}                 200 -    party       env co raw
  PUT    accounting/customers/{contactId}                 200 json party       co
  PATCH  accounting/customers/{contactId}                 200 json party       env co
+ GET    accounting/dimensions                            200 -    [dimension] since env co raw
  POST   accounting/event-subscriptions                   201 json any         co
  DELETE accounting/event-subscriptions/{eventSubscriptionId} 200 - any        co
  GET    accounting/expenses                              200 -    [expense]   page since co raw
  POST   accounting/expenses                              201 expense+files expense env co
  POST   accounting/expenses/async                        202 expense+files taskId co
  GET    accounting/expenses/{expenseId}                  200 -    expense     co raw journalCode
  POST   accounting/files                                 201 +file document   co
  POST   accounting/files/async                           202 +file taskId     co
  GET    accounting/files/documentExtensions              200 -    documentExtensions co
  GET    accounting/files/documentTypes                   200 -    [documentType] co
  GET    accounting/fiscalYears                           200 -    [fiscalYear] env co raw
  GET    accounting/fiscalYears/{fiscalYearId}            200 -    [fiscalYear] env co raw
  GET    accounting/goodsReceipts                         200 -    [goodsReceipt] page since env co raw
  GET    accounting/goodsReceipts/{goodsReceiptId}        200 -    goodsReceipt env co raw
  GET    accounting/goodsReceipts/{goodsReceiptId}/lineItems 200 - [receiptLine] since env co raw
  GET    accounting/goodsReceipts/{goodsReceiptId}/lineItems/{lineItemId} 200 - receiptLine env co raw
  GET    accounting/invoices                              200 -    [invoice]   page since env co raw status paymentStatus orderField orderDir dueDateFrom
  POST   accounting/invoices                              201 json invoice     env co
  GET    accounting/invoices/{invoiceId}                  200 -    invoice     env co raw
  PATCH  accounting/invoices/{invoiceId}                  200 json invoice     env co
  GET    accounting/invoices/{invoiceId}/document         200 -    document    env co
  GET    accounting/invoices/{invoiceId}/lineItems        200 -    [invoiceLine] page since env co raw
  POST   accounting/invoices/{invoiceId}/lineItems        201 json invoiceLine env co
  GET    accounting/invoices/{invoiceId}/lineItems/{lineItemId} 200 - invoiceLine env co raw
  PATCH  accounting/invoices/{invoiceId}/lineItems/{lineItemId} 200 json invoiceLine env co
  GET    accounting/items                                 200 -    [item]      page since env co raw type itemNumber
  POST   accounting/items                                 201 json item        env co
  GET    accounting/items/{itemId}                        200 -    [item]      env co raw
+ PUT    accounting/items/{itemId}                        200 json item        env co
  PATCH  accounting/items/{itemId}                        200 json item        env co
+ DELETE accounting/items/{itemId}                        200 -    text        env co
+ GET    accounting/journalEntries                        200|202 - [journalEntry] page since env co raw fiscalYear fiscalYearStartDate
  POST   accounting/journalEntries                        201 journal_entry+files journalEntry env co
  POST   accounting/journalEntries/bulk                   201|202 json journalBatch co
  GET    accounting/journalEntries/{journalEntryId}       200 -    journalEntry env co raw journalCode
+ PUT    accounting/journalEntries/{journalEntryId}       200 json journalEntry env co
+ PATCH  accounting/journalEntries/{journalEntryId}       200 json journalEntry env co
  GET    accounting/journalEntries/{journalEntryId}/Attachments 200 - [journalEntry] env co
  POST   accounting/journalEntries/{journalEntryId}/Attachments 201 +file journalEntry
  GET    accounting/journalEntries/{journalEntryId}/Attachments/{attachmentId} 200 - journalEntry env co
  GET    accounting/journals                              200 -    [journal]   page since env co raw
  GET    accounting/offers                                200 -    [offer]     page since env co raw status
  POST   accounting/offers                                201 json offer       env co
  GET    accounting/offers/{offerId}                      200 -    offer       env co raw
  GET    accounting/offers/{offerId}/document             200 -    document    env co
  GET    accounting/offers/{offerId}/lineItems            200 -    [offerLine] page since env co raw
  GET    accounting/offers/{offerId}/lineItems/{lineItemId} 200 -  offerLine   env co raw
+ GET    accounting/openItems                             200|202 - [openItem]  page since env co raw fiscalYear accountNumber documentNumber type
  POST   accounting/passThrough                           201 json any         env co
  GET    accounting/paymentTerms                          200 -    [paymentTerm] page since env co raw fiscalYear fiscalYearStartDate
  POST   accounting/paymentTerms                          201 json paymentTerm co
  GET    accounting/paymentTerms/{paymentTermId}          200 -    paymentTerm env co raw
  GET    accounting/payments                              200 -    [payment]   page since env co raw invoiceId
  POST   accounting/payments                              201 json payment     co
  GET    accounting/payments/{paymentId}                  200 -    payment     co raw
  DELETE accounting/payments/{paymentId}                  200 -    text        co
  GET    accounting/profile                               200 -    any
+ GET    accounting/projects                              200|202 - [project]   page since env co raw
  POST   accounting/projects                              201 json project     env co
  GET    accounting/projects/{projectId}                  200 -    project     env co raw
  GET    accounting/purchaseOrders                        200 -    [purchaseOrder] page since env co raw
  GET    accounting/purchaseOrders/{purchaseOrderId}      200 -    purchaseOrder env co raw
  GET    accounting/purchaseOrders/{purchaseOrderId}/lineItems 200 - [orderLine] since env co raw
  GET    accounting/purchaseOrders/{purchaseOrderId}/lineItems/{lineItemId} 200 - orderLine env co raw
  GET    accounting/salesOrders                           200 -    [salesOrder] page since env co raw status
  POST   accounting/salesOrders                           201 json salesOrder  env co
  GET    accounting/salesOrders/{salesOrderId}            200 -    salesOrder  env co raw
  GET    accounting/salesOrders/{salesOrderId}/lineItems  200 -    [orderLine] page since env co raw
  GET    accounting/suppliers                             200 -    [party]     page since env co raw email name number
  POST   accounting/suppliers                             201 json party       env co
  GET    accounting/suppliers/{contactId}                 200 -    party       env co raw
  PUT    accounting/suppliers/{contactId}                 200 json party       co
  PATCH  accounting/suppliers/{contactId}                 200 json party       env co
  GET    accounting/taxRates                              200 -    [taxRate]   page since env co raw isActive
  GET    accounting/taxRates/{taxRateId}                  200 -    taxRate     env co raw
  POST   accounting/transactions                          201 transaction+files transaction co
  GET    accounting/trialBalance                          200 -    [trialBalance] page since env co raw fiscalYear accountNumber accountCode fiscalYearStartDate
  GET    accounting/units                                 200 -    [unit]      page env co raw
  POST   accounting/v2/bookingProposals                   201|202 bookingProposal+files bookingProposalV2 co
  GET    accounting/v2/contacts                           200 -    [contact]   page since env co raw
  POST   accounting/v2/contacts                           201 json contact     env co
  GET    accounting/v2/contacts/{contactId}               200 -    contact     env co raw
  PUT    accounting/v2/contacts/{contactId}               200 json contact     env co
  PATCH  accounting/v2/contacts/{contactId}               200 json contact     env co
  GET    accounting/v2/dimensions                         200 -    [dimensionName] since env co raw
  GET    accounting/v2/dimensions/{dimension}             200 -    [dimensionName] page since env co raw
  POST   accounting/vendorCredit                          201 json vendorCredit env co
  GET    accounting/vendorCredits                         200 -    [vendorCredit] page since env co raw status paymentStatus
  PUT    accounting/vendorCredits/{vendorCreditId}        200 json bill        env co
  DELETE accounting/vendorCredits/{vendorCreditId}        200 -    text        env co
  POST   auth/accounts/{targetSystem}                     201 json <accountKey>
  POST   auth/apiKeyConfirmation                          201 -    <url>
  GET    auth/callback/{targetSystem}                     200 -    <url>       state! code realmId token
  POST   auth/cancel                                      201 -    <url>
  GET    auth/companies                                   200 -    [company]   env
  GET    auth/companiesFlow                               200 -    [company]   env
  GET    auth/environments                                200 -    [environment]
  GET    auth/longToken                                   200 -    <text>      targetSystem! companyId! callbackUrl include_signature
  GET    auth/selections                                  200 -    <any>       state! targetSystem!
  POST   auth/setEndUserSelections                        201 -    <message>   accountKey! environmentName! companyId!
  GET    auth/submit                                      200 -    <code>      code!
  GET    auth/test                                        200 -    <apiKey>    accountKey!
  GET    auth/{targetSystem}                              200 -    <html>      callbackUrl cancelCallbackUrl companyId tenantId baseUrl environmentSelection include_signature
  POST   events/callback/{code}                           202 -    <any>
  POST   events/configuration/callback/{code}             202 -    <any>
  POST   events/key/{code}                                201 -    <any>
  GET    health                                           200 -    <any>
  GET    health/details                                   200 -    <any>
  POST   tenants/add-callback-urls                        201 json <text>
  GET    tenants/count-end-users-by-system                200 -    any
  DELETE tenants/delete-end-user                          200 -    <message>
  DELETE tenants/delete-registered-system/{targetSystem}  200 -    <text>
  GET    tenants/get-all-active-end-users                 200 -    <any>
  GET    tenants/get-callback-url                         200 -    any
  GET    tenants/get-end-user-list                        200 -    any
  GET    tenants/get-registered-systems                   200 -    any
  GET    tenants/get-registered-systems-masked            200 -    any
  GET    tenants/get-submission-page-style                200 -    <any>       code!
  GET    tenants/get-target-system-requirements           200 -    any
  GET    tenants/get-target-system-values                 200 -    any
  POST   tenants/register-system                          201 json <text>
  POST   tenants/signing-secret                           201 -    <any>
  POST   tenants/submission-page-style                    201 json <any>
  GET    tenants/submission-page-style-by-key             200 -    <any>
  GET    user/user-info                                   200 -    userInfo
  POST   webhooks                                         201 json webhook     env co
  GET    webhooks                                         200 -    [webhook]   env co raw
  POST   webhooks/config                                  201 json webhook
  POST   webhooks/tenant                                  201 json webhook
  DELETE webhooks/tenant/{webhookId}                      200 -    <text>
  POST   webhooks/user                                    201 json webhook     env co
  DELETE webhooks/user/{webhookId}                        200 -    <any>       env co
  DELETE webhooks/{webhookId}                             200 -    <any>       env co
"""  # noqa: E501

_LONG: Final = {
    "page": ("page", "limit"),
    "since": ("lastModifiedAt",),
    "env": ("environmentName",),
    "co": ("companyId",),
    "raw": ("rawData",),
}
_OF_ACCOUNTS: Final = ("accounting", "user", "webhooks")
"""Prefixes of paths that concern one account, with the exceptions."""
_WITH_ACCOUNT: Final = frozenset({"auth/companies", "auth/companiesFlow", "auth/environments"})
_WITHOUT_ACCOUNT: Final = frozenset({"webhooks/config", "webhooks/tenant", "webhooks/tenant/{webhookId}"})


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of the API."""

    method: str
    path: str
    """Without a leading slash: ``"accounting/invoices/{invoiceId}"``."""
    status: int
    """The status of a success."""
    may_be_later: bool
    """Whether the API may answer with a 202 and the id of a task instead."""
    body: str
    """``"json"``, ``"form"`` or empty."""
    field: str
    """For a form: the field that holds the record as JSON. Empty: each field of the record is a field of the form."""
    files: str
    """For a form: the field that holds the files."""
    data: str
    """The type of ``data`` in the response, or of the response itself: a kind of record, ``"text"``, ``"any"``,
    ``"html"``, or the name of an object's only field."""
    many: bool
    """Whether ``data`` is a list of records."""
    envelope: bool
    """Whether the response has ``meta``, ``data``, ``errors`` and ``rawData``."""
    query: tuple[str, ...]
    """Its parameters."""
    required: tuple[str, ...]
    """The required parameters."""

    @property
    def is_list(self) -> bool:
        """Whether the operation reads a list of records rather than a single one."""
        return self.many and self.method == "GET" and not self.path.endswith("Id}")

    @property
    def needs_account(self) -> bool:
        """Whether the operation concerns one account, and so needs an account key."""
        if self.path in _WITH_ACCOUNT:
            return True
        return self.path.partition("/")[0] in _OF_ACCOUNTS and self.path not in _WITHOUT_ACCOUNT


@cache
def operations() -> tuple[Operation, ...]:
    """Return all operations, in the order of the table."""
    return tuple(_operation(line[2:].split()) for line in _TABLE.splitlines() if line.strip())


def _operation(columns: Sequence[str]) -> Operation:
    method, path, status, body, data, *parameters = columns
    field, _, files = body.partition("+")
    names = [(name.rstrip("!"), name.endswith("!")) for name in parameters]
    return Operation(
        method,
        path,
        int(status.partition("|")[0]),
        "|" in status,
        "" if body == "-" else "json" if body == "json" else "form",
        field if files else "",
        files,
        data.strip("[]<>"),
        data.startswith("["),
        not data.startswith("<"),
        tuple(long for name, _ in names for long in _LONG.get(name, (name,))),
        tuple(long for name, needed in names if needed for long in _LONG.get(name, (name,))),
    )


class _Node:
    """A node in the tree of path segments."""

    __slots__ = ("found", "literal", "template", "variable")

    def __init__(self) -> None:
        self.literal: dict[str, _Node] = {}
        self.variable: _Node | None = None
        self.found: dict[str, Operation] = {}
        """The operations of the path that ends here, by method."""
        self.template: str | None = None


@cache
def _tree() -> _Node:
    root = _Node()
    for operation in operations():
        node = root
        for part in operation.path.split("/"):
            if part.startswith("{"):
                node.variable = node = node.variable or _Node()
            else:
                node = node.literal.setdefault(part, _Node())
        node.found[operation.method] = operation
        node.template = operation.path
    return root


def at_path(path: str) -> tuple[Mapping[str, Operation], tuple[str, ...]]:
    """Return the operations at a path by method, and the values of the path's parameters.

    Leading and trailing slashes are ignored. For an unknown path both are empty.
    """
    values: list[str] = []
    node = _at(path, values)
    return ({}, ()) if node is None else (node.found, tuple(values))


def _at(path: str, values: list[str]) -> _Node | None:
    node = _tree()
    for part in path.strip("/").split("/"):
        following = node.literal.get(part)
        if following is None:
            following = node.variable
            if following is None:
                return None
            values.append(part)
        node = following
    return node if node.found else None


def template_of(path: str) -> str | None:
    """Return the template of a path, such as ``accounting/invoices/{invoiceId}``; None if the path is unknown."""
    node = _at(path, [])
    return None if node is None else node.template


def needs_account(method: str, path: str) -> bool:
    """Return whether a request needs an account key. A path outside the table needs one, except below three
    prefixes."""
    found, _ = at_path(path)
    operation = found.get(method) or next(iter(found.values()), None)
    if operation is not None:
        return operation.needs_account
    return path.strip("/").partition("/")[0] not in {"auth", "health", "tenants"}


def lists() -> Iterator[Operation]:
    """Yield the operations that return a list of records."""
    return (operation for operation in operations() if operation.is_list)
